"""The scaling signals: when the router wants an instance more or fewer."""

from typing import Any

import pytest
from msgspec.structs import replace

from configs.schema.router import RouterCoreConfig
from configs.schema.scaling import ScalingConfig
from router.decisions.core import RouterCore
from router.decisions.instance import Instance
from router.decisions.messages import Arrived, Handler, Joined, Lost, Reported
from router.decisions.scaling import FULL, SPARE, Load, ScalingSignals
from tests.router.helpers import instance, status

TTFT_S, TPOT_S = 5.0, 0.1
"""The targets of the instances of `helpers`."""


def signals(signal: str = "load", **settings: Any) -> ScalingSignals:
    given = {"local_args": "a-model", "max_instances": 4, "scale_cooldown": 10.0, **settings}
    return ScalingSignals(ScalingConfig(actuator="local", scale_signal=signal, **given))


def decoding(count: int, turn_s: float, s_per_row: float = 0.0, **promises: Any) -> Instance:
    """An instance that decodes so many requests, and as many more at this cost."""
    given = {"lone_turn_s": 0.02, "slack_s": 9.0, **promises}
    return instance(num_decoding=count, turn_s=turn_s, turn_s_per_row=s_per_row, **given)


def feed(signals: ScalingSignals, seconds_per_second: float) -> None:
    """Ten seconds with so many seconds of prefill per second."""
    for second in range(10):
        signals.observe_prefill(seconds_per_second, second + 0.5)


def load_of(serving: list[Instance], prefill_s: float = 0.0, kv_instances: float = 0.0) -> Load:
    made = Load.of_serving(serving, prefill_s, kv_instances)
    assert made is not None
    return made


def test_the_load_is_prefill_and_what_rows_add_to_a_turn() -> None:
    none = load_of([instance(lone_turn_s=0.02)], 0.4)
    assert none.of(1) == pytest.approx(0.4 / 0.8), "a fifth of the target is gone in any case"
    assert none.of(2) == pytest.approx(0.2 / 0.8)
    # In a turn of 0.1 s instead of 0.05 s, twice as many decode at the same tokens per second.
    rows = load_of([decoding(100, 0.05, 0.0003)])
    assert rows.of(1) == pytest.approx(0.0003 * 199 / TPOT_S / 0.8)
    assert rows.of(2) == pytest.approx(0.0003 * 99 / TPOT_S / 0.8)
    assert rows.of(1000) == 0


def test_requests_decode_slower_beside_prefill() -> None:
    beside = load_of([decoding(100, 0.05, 0.0003)], 0.5)
    assert beside.of(1) == pytest.approx((0.5 + 0.0003 * 99 / TPOT_S) / 0.8)


def test_the_load_is_that_of_kv_memory_where_it_is_higher() -> None:
    kv: dict[str, Any] = {"lone_turn_s": 0.02, "kv_tokens": 1000}
    used = [
        instance("a", free_kv_tokens=300, offline_kv_tokens=100, **kv),
        instance("b", free_kv_tokens=800, **kv),
        instance("c", lone_turn_s=0.02, kv_tokens=0, free_kv_tokens=0),  # not known yet
    ]
    told = signals().load(used, 0.0)
    assert told is not None
    assert told.of(2) == pytest.approx(0.8 / 2)
    assert load_of(used, 1.6, 0.8).of(2) == pytest.approx(1.6 / 2 / 0.8)
    assert signals().change(used[:2], 2, 0.0, 10.0) == 0, "one would be full"
    assert signals().change(used[1:], 2, 0.0, 10.0) == -1
    full = [instance("a", free_kv_tokens=50, **kv)]
    assert signals().change(full, 1, 0.0, 10.0) == 1
    offline = [instance("a", free_kv_tokens=50, offline_kv_tokens=900, **kv)]
    assert signals().change(offline, 1, 0.0, 10.0) == 0, "it would be preempted"


def test_the_most_kv_that_was_held_in_the_window_counts() -> None:
    """Else an instance goes whenever a few requests end at once, and is missed a moment later."""
    full, empty = (
        [instance(name, free_kv_tokens=free, kv_tokens=1000, lone_turn_s=0.02) for name in "ab"]
        for free in (400, 1000)
    )
    told = signals()
    told.observe_kv(full, 0.0)
    told.observe_kv(empty, 1.0)
    assert told.change(empty, 2, 0.0, 9.0) == 0
    assert told.change(empty, 2, 0.0, 11.0) == -1


def test_an_instance_is_wanted_before_the_load_is_more_than_all_can_do() -> None:
    alone = [instance(lone_turn_s=0.02)]
    told = signals()
    feed(told, 0.8 * FULL - 0.05)
    assert told.change(alone, 1, 0.0, 10.0) == 0
    told = signals()
    feed(told, 0.8 * FULL + 0.05)
    assert told.change(alone, 1, 0.0, 10.0) == 1
    assert told.change(alone, 1, 0.0, 19.0) == 0, "the cooldown"


def test_an_instance_goes_when_the_others_can_take_its_load() -> None:
    pair = [instance("a", lone_turn_s=0.02), instance("b", lone_turn_s=0.02)]
    told = signals()
    feed(told, 0.8 * SPARE + 0.05)
    assert told.change(pair, 2, 0.0, 10.0) == 0
    told = signals()
    feed(told, 0.8 * SPARE - 0.05)
    assert told.change(pair, 2, 1.0, 10.0) == 0, "a request waits"
    assert told.change(pair, 2, 0.0, 10.0) == -1


def test_slack_does_not_tell_whether_the_others_can_take_the_load() -> None:
    """Two that decode at less than half of the target: the paper's signal removes one."""
    pair = [decoding(60, 0.04, 0.0003, mean_slack_s=9.0) for _ in range(2)]
    assert signals("ecoserve").change(pair, 2, 0.0, 10.0) == -1
    assert signals().change(pair, 2, 0.0, 10.0) == 0


def test_a_target_that_no_number_of_instances_meets_starts_none() -> None:
    for lone_turn_s in (0.095, 0.2):
        alone = [decoding(1, lone_turn_s, lone_turn_s=lone_turn_s)]
        assert signals().change(alone, 1, 0.0, 10.0) == 0


@pytest.mark.parametrize("signal", ["load", "ecoserve"])
def test_late_first_tokens_want_an_instance_whatever_the_load(signal: str) -> None:
    alone = [decoding(1, 0.02)]
    told = signals(signal)
    told.observe_first_token(TTFT_S + 1, 0.0)
    assert told.change(alone, 1, 0.0, 11.0) == 0, "that is long ago"
    told.observe_first_token(TTFT_S + 1, 11.0)
    assert told.change(alone, 1, 0.0, 11.0) == 1
    assert signals(signal).change(alone, 1, TTFT_S + 1, 11.0) == 1, "one waits for so long"
    assert signals(signal, max_instances=1).change(alone, 1, TTFT_S + 1, 11.0) == 0


def test_without_a_tpot_target_the_signals_are_the_paper_s() -> None:
    pair = [instance("a"), instance("b")]
    for each in pair:
        assert each.status is not None
        each.status = replace(each.status, tpot_slo=0.0)
    told = signals()
    feed(told, 5.0)
    assert told.change(pair, 2, 0.0, 10.0) == -1, "no request decodes"
    for each in pair:
        each.status = replace(each.status, ttft_slo=0.0)
    assert signals().change(pair, 2, 99.0, 10.0) == 0


def test_the_core_tells_the_load_of_those_that_serve() -> None:
    core = RouterCore(RouterCoreConfig())
    assert core.load(0.0) is None
    for name in ("a", "b"):
        core.handle(Joined(Handler(name)), 0.0)
        core.handle(Reported(name, status(name, lone_turn_s=0.02)), 0.0)
    core.handle(Arrived(1, 4000), 0.0)  # 4 s of prefill, in a window of 10 s
    assert core.load(0.0) == pytest.approx(0.4 / 2 / 0.8)
    core.handle(Lost("b"), 1.0)
    assert core.load(1.0) == pytest.approx(0.4 / 0.8)
    assert core.load(11.0) is None, "silent instances do not serve"
