"""The routing rules: which instance gets a request, and when it waits."""

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from configs.schema.router import RouterCoreConfig, RoutingConfig
from router.decisions.core import RouterCore
from router.decisions.instance import Instance, Request
from router.decisions.messages import Arrived, Grow, Handler, Joined, Kind, Reported, Ticked
from router.decisions.routing.adaptive import IN_TIME, Adaptive
from router.decisions.routing.ecoserve import EcoServe
from router.decisions.routing.simple import IMBALANCE, LeastLoaded, PrefixAffine, RoundRobin
from tests.router.helpers import instance, status


def request(num_tokens: int = 1000, *, arrived_at: float = 0.0, **fields: Any) -> Request:
    return Request(1, num_tokens, 0, fields.pop("kind", "online"), arrived_at, **fields)


def busy(made: Instance, count: int = 1) -> Instance:
    """An instance with open requests, which its status has counted."""
    for number in range(count):
        made.open[100 + number] = Request(100 + number, 10, 0, "online", -10.0, sent_at=-10.0)
    return made


def adaptive(**settings: Any) -> Adaptive:
    return Adaptive(RoutingConfig(**settings))


def test_ecoserve_takes_the_last_instance_until_a_check_fails() -> None:
    first = busy(instance("a", slot_prefill_s=3.9, slack_s=100.0))
    second = busy(instance("b", slack_s=100.0))
    assert EcoServe().choose(request(), [first, second], 0.0) is first
    full = busy(instance("a", slot_prefill_s=4.1, slack_s=100.0))
    assert EcoServe().choose(request(), [full, second], 0.0) is second


@pytest.mark.parametrize(
    "promises",
    [
        {"slot_prefill_s": 4.1},  # with the second of the request, more than 5 s
        {"slack_s": 0.9},  # less than the second of the request
        {"free_kv_tokens": 999},
    ],
)
def test_ecoserve_lets_a_request_wait_if_any_check_fails(promises: dict[str, Any]) -> None:
    assert EcoServe().choose(request(), [busy(instance(**promises))], 0.0) is None


def test_ecoserve_counts_what_it_sent_since_the_status() -> None:
    made = busy(instance(slot_prefill_s=3.5, slack_s=100.0, at=1.0))
    assert EcoServe().choose(request(), [made], 1.0) is made
    made.open[2] = Request(2, 600, 0, "online", 1.0, sent_at=1.0, alone_s=0.6)
    assert EcoServe().choose(request(), [made], 1.0) is None


def test_adaptive_takes_the_instance_with_the_least_to_feed() -> None:
    members = [instance("a", pending_prefill_s=2.0), instance("b", pending_prefill_s=1.0)]
    assert adaptive().choose(request(), members, 0.0) is members[1]


def test_adaptive_counts_the_time_that_a_request_has_waited() -> None:
    made = busy(instance(pending_prefill_s=2.0, at=9.0))
    assert adaptive().choose(request(arrived_at=8.5), [made], 9.0) is made
    late = request(arrived_at=9.0 - IN_TIME * 5.0 + 0.5)
    assert adaptive().choose(late, [made], 9.0) is None


def test_adaptive_counts_that_decoding_slows_prefill_down() -> None:
    fast = busy(instance(pending_prefill_s=2.0))
    slow = busy(instance(pending_prefill_s=2.0, prefill_stretch=2.0))
    assert adaptive().choose(request(), [fast], 0.0) is fast
    assert adaptive().choose(request(), [slow], 0.0) is None


def test_a_late_request_gets_what_others_leave_over() -> None:
    """Its target does not hold it back, but those that come next must not be late, too."""
    rule, late = adaptive(), request(arrived_at=0.0)
    assert rule.choose(late, [busy(instance(pending_prefill_s=1.0, at=9.0))], 9.0) is not None
    for promises in ({"pending_prefill_s": 1.5}, {"pending_prefill_s": 0.8, "prefill_stretch": 2}):
        made = busy(instance(at=9.0, **promises))
        assert rule.choose(late, [made], 9.0) is None
        assert rule.choose(request(arrived_at=8.9), [made], 9.0) is made
        assert adaptive(hopeless_last=False).choose(late, [made], 9.0) is made


def test_a_stream_that_was_broken_off_is_not_held_back_by_what_is_fed_before_it() -> None:
    made = busy(instance(pending_prefill_s=3.0, slack_s=9.0, at=9.0))
    broken = request(100, arrived_at=0.0, num_done=50)
    assert adaptive().choose(broken, [made], 9.0) is made


def test_adaptive_looks_at_a_low_quantile_of_slack_and_ecoserve_at_the_mean() -> None:
    slack = (-1.0, -1.0, 0.5, 2.0, 9.0, 9.0, 9.0)
    made = busy(instance(mean_slack_s=5.0, slack_s=None))
    promises = made.status.promises  # type: ignore[union-attr]
    assert promises.slack_s == ()
    told = instance("a", mean_slack_s=5.0, slack_s=None)  # without decoding requests, all pass
    assert adaptive().choose(request(), [busy(told)], 0.0) is told
    low = busy(_with_slack(slack, mean_s=5.0))
    assert adaptive().choose(request(), [low], 0.0) is None
    assert adaptive(slack_quantile="mean").choose(request(), [low], 0.0) is low
    assert EcoServe().choose(request(), [low], 0.0) is low


def _with_slack(quantiles: tuple[float, ...], mean_s: float) -> Instance:
    from msgspec.structs import replace

    made = instance()
    assert made.status is not None
    promises = replace(
        made.status.promises,
        slack_s=quantiles,
        projected_slack_s=quantiles,
        mean_slack_s=mean_s,
    )
    made.report(replace(made.status, promises=promises), 0.0)
    return made


def test_only_requests_that_will_miss_their_target_hold_nothing_back() -> None:
    from msgspec.structs import replace

    lost = busy(_with_slack((-9.0,) * 7, mean_s=-9.0))
    assert lost.status is not None
    assert adaptive().choose(request(), [lost], 0.0) is None
    promises = replace(lost.status.promises, projected_slack_s=())
    lost.report(replace(lost.status, promises=promises), 0.0)
    assert adaptive().choose(request(), [lost], 0.0) is lost
    assert adaptive().choose(request(kind="offline"), [lost], 0.0) is None


def test_adaptive_sends_nothing_where_tokens_take_longer_than_the_target() -> None:
    slow = busy(instance(turn_s=0.099, turn_s_per_row=0.001, num_waiting=2))
    assert adaptive().choose(request(), [slow], 0.0) is None
    assert adaptive().choose(request(), [busy(instance(turn_s=0.09))], 0.0) is not None


def test_a_target_that_even_a_request_alone_misses_holds_nothing_back() -> None:
    late = instance(turn_s=0.3, turn_s_per_row=0.01, lone_turn_s=0.2, slack_s=-5.0)
    busy(late)
    assert adaptive().choose(request(), [late], 0.0) is late
    assert adaptive().choose(request(kind="offline"), [late], 0.0) is late
    emptier = instance(turn_s=0.3, lone_turn_s=0.2, slack_s=-5.0)
    assert adaptive().choose(request(), [late, emptier], 0.0) is emptier


def test_predicted_answers_count_for_kv() -> None:
    made = busy(instance(free_kv_tokens=1500))
    long = Request(1, 1000, 600, "online", 0.0)
    assert adaptive().choose(long, [made], 0.0) is None
    assert adaptive(predicted_lengths=False).choose(long, [made], 0.0) is made


def test_an_idle_instance_takes_whatever_fits_nowhere() -> None:
    made = instance(free_kv_tokens=10)
    assert adaptive().choose(request(), [made], 0.0) is made


def test_a_cached_prefix_is_preferred_if_it_saves_more_than_the_wait() -> None:
    near, far = instance("a", pending_prefill_s=0.5), instance("b")
    near.prefixes.tell((1, 2, 3), (), 0.0)
    asked = request(prefix_keys=(1, 2, 3), tokens_per_key=300.0)
    assert adaptive().choose(asked, [near, far], 0.0) is near
    assert adaptive(prefix_affinity=False).choose(asked, [near, far], 0.0) is far
    little = request(prefix_keys=(1,), tokens_per_key=400.0)  # saves 0.4 s, for others as well
    for pending_s, is_chosen in ((0.7, True), (0.9, False)):
        some = instance("a", pending_prefill_s=pending_s)
        some.prefixes.tell((1,), (), 0.0)
        assert (adaptive().choose(little, [some, far], 0.0) is some) is is_chosen
    near.prefixes.tell((), (1,), 0.0)  # the others are of no use without the first
    assert adaptive().choose(asked, [near, far], 0.0) is far


def test_without_targets_adaptive_balances_open_requests() -> None:
    """A cached prompt, or the last request, must not draw all requests to one instance."""
    members = [busy(instance("a")), instance("b")]
    for each in members:
        assert each.status is not None
        each.status = msgspec.structs.replace(each.status, ttft_slo=0.0, tpot_slo=0.0)
    asked = request(prefix_keys=(1, 2), tokens_per_key=100.0)
    assert adaptive().choose(asked, members, 0.0) is members[1]
    members[0].prefixes.tell((1, 2), (), 0.0)
    assert adaptive().choose(asked, members, 0.0) is members[0]
    assert adaptive(prefix_affinity=False).choose(asked, members, 0.0) is members[1]
    busy(members[0], IMBALANCE + 1)
    assert adaptive().choose(asked, members, 0.0) is members[1]


def test_offline_requests_fill_what_targets_leave_over() -> None:
    offline = request(kind="offline")
    idle = instance()
    assert adaptive().choose(offline, [idle], 0.0) is idle
    assert adaptive().choose(offline, [instance(pending_prefill_s=3.0)], 0.0) is None
    assert adaptive().choose(offline, [instance(slack_s=1.0)], 0.0) is None
    full = instance(free_kv_tokens=900)
    assert adaptive().choose(offline, [full], 0.0) is full, "it waits for nothing"
    assert adaptive().choose(offline, [busy(full, 1)], 0.0) is None


def test_offline_requests_wait_for_the_first_tokens_of_those_before_them() -> None:
    """Streams tell them; of other answers, the status tells how many have none yet."""
    offline = request(kind="offline")

    def chosen(
        num_open: int, num_begun: int = 0, *, sent_at: float = -1.0, **promises: int
    ) -> bool:
        made = instance(**promises)
        for i in range(num_open):
            made.open[i] = Request(i, 10, 0, "offline", 0.0, sent_at=sent_at)
            made.open[i].has_begun = i < num_begun
        return adaptive().choose(offline, [made], 0.0) is made

    assert not chosen(1, sent_at=0.0), "no status can tell of it yet"
    assert not chosen(1, num_offline=1, num_offline_waiting=1)
    assert chosen(1, num_offline=1)
    assert chosen(1, 1, sent_at=0.0)
    assert chosen(8, num_offline=8, num_offline_waiting=3)
    assert not chosen(8, num_offline=8, num_offline_waiting=4)
    assert chosen(8, 5, num_offline=8, num_offline_waiting=4), "streams tell it sooner"


@pytest.mark.parametrize(("kind", "grows"), [("online", True), ("offline", False)])
def test_no_instance_is_started_for_offline_requests_that_wait(kind: Kind, grows: bool) -> None:
    settings = {"actuator": "local", "max_instances": 2, "local_args": "a-model"}
    core = RouterCore(RouterCoreConfig.of(**settings))
    core.handle(Joined(Handler("a")), 0.0)
    full = status("a", pending_prefill_s=9.0, slack_s=0.0)
    core.handle(Reported("a", full), 0.0)
    for request_id in (1, 2):
        core.handle(Arrived(request_id, 1000, kind=kind), 0.0)
    core.handle(Reported("a", full), 20.0)
    assert len(core.pending) == (1 if grows else 2), "an idle instance takes one online request"
    assert (Grow() in core.handle(Ticked(), 20.0)) is grows


def test_offline_requests_do_not_wait_for_targets_that_are_not_set() -> None:
    made = instance(pending_prefill_s=3.0, slack_s=-50.0, turn_s=9.0)
    assert adaptive().choose(request(kind="offline"), [made], 0.0) is None
    assert made.status is not None
    made.status = replace(made.status, ttft_slo=0.0, tpot_slo=0.0)
    assert adaptive().choose(request(kind="offline"), [made], 0.0) is made


def test_simple_rules_never_let_a_request_wait() -> None:
    loaded, idle = busy(instance("a"), IMBALANCE + 1), instance("b")
    loaded.prefixes.tell((1,), (), 0.0)
    asked = request(prefix_keys=(1,), tokens_per_key=100.0)
    idle.num_sent = 5
    assert RoundRobin().choose(asked, [loaded, idle], 0.0) is loaded
    assert LeastLoaded().choose(asked, [loaded, idle], 0.0) is idle
    assert PrefixAffine().choose(asked, [loaded, idle], 0.0) is idle
    del loaded.open[100]
    assert PrefixAffine().choose(asked, [loaded, idle], 0.0) is loaded
