"""Requests that wait: what cannot be served must not keep others from being served."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema.router import RouterCoreConfig
from router.decisions.core import RouterCore
from router.decisions.messages import (
    Arrived,
    Broken,
    Decision,
    Ended,
    Handler,
    Joined,
    Kind,
    Lost,
    Refuse,
    Reported,
    Route,
    Suspected,
    Ticked,
)
from router.decisions.prefix_view import PrefixView
from tests.router.helpers import status

RULES = ("adaptive", "ecoserve", "round-robin", "least-loaded", "prefix")
MAX_PENDING_S = RouterCoreConfig().routing.max_pending_time
NO_INSTANCE_S = RouterCoreConfig().routing.no_instance_timeout
FULL = {"free_kv_tokens": 0, "pending_prefill_s": 100.0, "slot_prefill_s": 100.0, "slack_s": 0.0}


def core_with(*names: str, rule: str = "adaptive", **settings: object) -> RouterCore:
    core = RouterCore(RouterCoreConfig.of(routing=rule, **settings))
    for name in names:
        core.handle(Joined(Handler(name)), 0.0)
        core.handle(Reported(name, status(name)), 0.0)
    return core


def kinds(decisions: list[Decision]) -> dict[int, str]:
    """What becomes of which request: the instance, or the code of the refusal."""
    found = {d.request_id: d.name for d in decisions if isinstance(d, Route)}
    return found | {d.request_id: d.code for d in decisions if isinstance(d, Refuse)}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["online", "offline"])
@pytest.mark.parametrize("is_busy", [False, True])
def test_prompts_that_fit_nowhere_are_sent_at_once_and_keep_nobody_waiting(
    rule: str, kind: Kind, is_busy: bool
) -> None:
    """The instance refuses them in the client's words."""
    core, numbers = core_with("a", "b", rule=rule), count()
    if is_busy:
        for _ in "ab":
            core.handle(Arrived(next(numbers), 10), 0.1)
    for _ in range(20):
        number = next(numbers)
        assert number in kinds(core.handle(Arrived(number, 100_001, kind=kind), 0.2))
        core.handle(Ended(number), 0.2)
    number = next(numbers)
    assert number in kinds(core.handle(Arrived(number, 10), 0.2))


def test_an_answer_that_could_not_be_held_is_not_expected() -> None:
    core = core_with("a")
    core.handle(Arrived(1, 10), 0.1)
    assert kinds(core.handle(Arrived(2, 10, expected_output=10**9), 0.2)) == {2: "a"}


def test_offline_requests_that_lost_their_instance_do_not_come_before_online_ones() -> None:
    core = core_with("a", "b")
    core.handle(Reported("a", status("a", num_offline=1000)), 0.1)
    core.handle(Reported("b", status("b", num_offline=1000)), 0.1)
    for number in range(40):
        core.handle(Arrived(number, 10, kind="offline"), 0.1)
    core.handle(Lost("a"), 1.0)
    core.handle(Reported("b", status("b", num_offline=1, num_offline_waiting=1)), 1.0)
    for number in range(40):
        if core.instances["a"].open.get(number):
            core.handle(Broken(number, 3), 1.0)
    assert core.pending.num_offline > 9
    assert kinds(core.handle(Arrived(99, 10), 1.1)) == {99: "b"}


@pytest.mark.parametrize("kind", ["online", "offline"])
def test_every_kind_of_request_is_refused_if_no_instance_comes(kind: Kind) -> None:
    core = core_with()
    core.handle(Arrived(1, 10, kind=kind), 0.0)
    assert core.handle(Ticked(), NO_INSTANCE_S - 1.0) == []
    assert kinds(core.handle(Ticked(), NO_INSTANCE_S + 1.0)) == {1: "no_instance"}


def test_an_offline_request_is_refused_if_nothing_is_left_over_for_it() -> None:
    core = core_with("a")
    core.handle(Arrived(0, 10), 0.0)
    core.handle(Reported("a", status("a", **FULL)), 1.0)
    assert core.handle(Arrived(1, 10, kind="offline"), 1.0) == []
    core.handle(Reported("a", status("a", **FULL)), MAX_PENDING_S)
    assert core.handle(Ticked(), MAX_PENDING_S) == []
    core.handle(Reported("a", status("a", **FULL)), MAX_PENDING_S + 1.9)
    assert len(core.pending) == 0


def test_a_begun_offline_request_goes_on_instead() -> None:
    core = core_with("a")
    core.handle(Arrived(1, 10, kind="offline"), 0.0)
    core.handle(Lost("a"), 1.0)
    core.handle(Broken(1, 5), 1.0)
    core.handle(Reported("a", status("a")), 1.1)
    assert 1 in core.instances["a"].open


@pytest.mark.parametrize("max_pending", [1, 4, 100])
def test_offline_requests_leave_places_for_online_ones(max_pending: int) -> None:
    core = core_with(max_pending=max_pending)
    for number in range(2 * max_pending):
        core.handle(Arrived(number, 10, kind="offline"), 0.0)
    assert core.pending.num_offline == max(1, max_pending * 3 // 4)
    refused = kinds(core.handle(Arrived(9999, 10), 0.0))
    assert refused == ({9999: "queue_full"} if max_pending == 1 else {})
    for number in range(2 * max_pending):
        core.handle(Ended(number), 0.0)
    assert core.pending.num_offline == 0


def test_a_suspected_instance_gets_nothing_before_its_next_status_and_keeps_its_prefixes() -> None:
    core = core_with("a")
    first = status("a")
    core.handle(Reported("a", first, begins=True), 0.1)
    core.instances["a"].prefixes.tell((1, 2), (), 0.1)
    core.handle(Suspected("a"), 0.2)
    assert core.handle(Arrived(1, 10), 0.2) == []
    assert kinds(core.handle(Reported("a", first), 0.3)) == {1: "a"}
    assert 1 in core.instances["a"].prefixes
    core.handle(Reported("a", first, begins=True), 0.4)
    assert 1 not in core.instances["a"].prefixes


def test_keys_that_were_sent_count_until_their_request_has_ended() -> None:
    """An instance without a prefix cache never tells any, and must not gather them."""
    core = core_with("a")
    for number in range(100):
        keys = (number, number + 1)
        core.handle(Arrived(number, 10, prefix_keys=keys, tokens_per_key=5.0), float(number))
        assert number in core.instances["a"].prefixes
        core.handle(Ended(number), number + 0.1)
        core.handle(Reported("a", status("a")), number + 0.2)
        assert len(core.instances["a"].prefixes) == 0


keys = st.lists(st.integers(0, 9), max_size=4).map(tuple)


@given(st.lists(st.tuples(st.sampled_from(["send", "end", "tell"]), keys, keys), max_size=40))
def test_a_key_is_there_while_it_is_told_or_sent(
    script: list[tuple[str, tuple[int, ...], tuple[int, ...]]],
) -> None:
    view, told, sent = PrefixView(), set[int](), list[tuple[int, ...]]()
    ended: list[tuple[float, tuple[int, ...]]] = []
    for now, (what, some, others) in enumerate(script):
        if what == "send":
            view.send(some)
            sent.append(some)
        elif what == "end" and sent:
            ended.append((now, sent.pop(0)))
            view.end(ended[-1][1], now)
        elif what == "tell":
            view.tell(some, others, now - 2)
            told = (told - set(others)) | set(some)
            ended = [(at, each) for at, each in ended if at > now - 2]
        held = told.union(*sent, *(each for _, each in ended))
        assert {key for key in range(10) if key in view} == held


def test_an_offline_request_that_waited_for_an_instance_gets_the_one_that_comes() -> None:
    core = core_with("a", max_pending_time=30.0, no_instance_timeout=120.0)
    core.handle(Lost("a"), 1.0)
    for number, kind in enumerate(("offline", "online")):
        core.handle(Arrived(number, 10, kind=kind), 1.5)
    assert core.handle(Ticked(), 39.0) == []
    assert kinds(core.handle(Reported("a", status("a")), 40.0)) == {0: "a", 1: "a"}


def test_a_request_of_another_core_keeps_its_place() -> None:
    """Its client may have a part of the answer: it is not refused for a full queue."""
    core = core_with(max_pending=1)
    core.handle(Arrived(1, 10), 0.0)
    assert kinds(core.handle(Arrived(2, 10), 0.0)) == {2: "queue_full"}
    moved = Arrived(3, 10, age_s=50.0, waited_s=5.0, was_sent=True, num_done=500)
    assert core.handle(moved, 10.0) == []
    core.handle(Joined(Handler("a")), 10.0)
    decisions = core.handle(Reported("a", status("a")), 10.0)
    assert [each.request_id for each in decisions if isinstance(each, Route)] == [3, 1]
    request = core.instances["a"].open[3]
    assert (request.arrived_at, request.waits_since) == (-40.0, 5.0)
    assert (request.num_to_feed, request.has_begun) == (510, True)


@pytest.mark.parametrize("signal", ["load", "ecoserve"])
def test_the_last_instance_that_serves_is_kept_while_others_are_lost(signal: str) -> None:
    settings = {"actuator": "local", "scale_signal": signal, "scale_cooldown": 0.0}
    core, out = core_with("a", "b", **settings), list[Decision]()
    core.handle(Lost("b"), 0.5)
    for step in range(1, 200):
        now = step * 0.25
        out += core.handle(Reported("a", status("a", slack_s=100.0)), now)
        out += core.handle(Ticked(), now)
    assert not out
    core.handle(Reported("b", status("b", slack_s=100.0)), 50.0)
    assert core.handle(Ticked(), 50.1), "with two, one may go"
