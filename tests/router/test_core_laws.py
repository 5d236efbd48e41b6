"""Laws of the router's core, whatever happens in whatever order."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from configs.router import RouterCoreConfig
from router.core import RouterCore
from router.messages import (
    Arrived,
    Began,
    Broken,
    Decision,
    Ended,
    Event,
    Handler,
    Joined,
    Leaving,
    Lost,
    Refuse,
    Removed,
    Reported,
    Route,
    Shrink,
    Ticked,
)
from tests.router.helpers import status

NAMES = [f"instance {i}" for i in range(7)]
RULES = ("adaptive", "ecoserve", "round-robin", "least-loaded", "prefix")
MAX_PENDING_S = RouterCoreConfig().routing.max_pending_time
NO_INSTANCE_S = RouterCoreConfig().routing.no_instance_timeout

names = st.sampled_from(NAMES)
ids = st.integers(0, 30)
slacks = st.one_of(st.none(), st.floats(-2.0, 10.0))
operations = st.one_of(
    st.tuples(st.just("arrive"), ids, st.integers(1, 6000), st.sampled_from(["online", "offline"])),
    st.tuples(st.just("end"), ids),
    st.tuples(st.just("begin"), ids),
    st.tuples(st.just("break"), ids, st.integers(0, 50)),
    st.tuples(st.just("join"), names),
    st.tuples(st.just("leave"), names),
    st.tuples(st.just("lose"), names, st.booleans()),
    st.tuples(st.just("report"), names, slacks, st.floats(0.0, 8.0), st.integers(0, 20_000)),
    st.tuples(st.just("tick")),
)


@dataclass
class World:
    """What a process would know: who is open where, and what the core has decided."""

    core: RouterCore
    open: dict[int, str | None] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    routes: Counter[int] = field(default_factory=Counter)
    asked: Counter[int] = field(default_factory=Counter)
    joined: set[str] = field(default_factory=set)
    events: list[tuple[Event, float]] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> None:
        self.events.append((event, now))
        for decision in self.core.handle(event, now):
            self.decisions.append(decision)
            self._note(decision)

    def _note(self, decision: Decision) -> None:
        match decision:
            case Route(request_id, name):
                assert self.open[request_id] is None, "a request is routed once"
                assert name in self.joined
                self.open[request_id] = name
                self.routes[request_id] += 1
            case Refuse(request_id, _):
                assert self.open.pop(request_id) is None
                self.routes[request_id] += 1
            case Removed(name):
                assert name not in self.open.values(), "only without open requests"
                self.joined.discard(name)
            case Shrink(candidates):
                assert set(candidates) <= self.joined

    def operate(self, operation: tuple, now: float) -> None:  # type: ignore[type-arg]
        kind, *rest = operation
        if kind == "arrive" and rest[0] not in self.seen:
            self.seen.add(rest[0])
            self.open[rest[0]] = None
            self.asked[rest[0]] += 1
            self.handle(Arrived(rest[0], rest[1], kind=rest[2]), now)
        elif kind == "end" and rest[0] in self.open:
            del self.open[rest[0]]
            self.handle(Ended(rest[0]), now)
        elif kind == "begin":
            self.handle(Began(rest[0]), now)
        elif kind == "break" and self.open.get(rest[0]) is not None:
            self.open[rest[0]] = None
            self.asked[rest[0]] += 1
            self.handle(Broken(rest[0], rest[1]), now)
        elif kind == "join":
            self.joined.add(rest[0])
            self.handle(Joined(Handler(rest[0])), now)
        elif kind == "leave":
            self.handle(Leaving(rest[0]), now)
        elif kind == "lose":
            self.handle(Lost(rest[0], is_gone=rest[1]), now)
        elif kind == "report":
            name, slack_s, pending_s, free = rest
            promised = {"pending_prefill_s": pending_s, "slot_prefill_s": pending_s}
            told = status(name, slack_s=slack_s, free_kv_tokens=free, **promised)
            self.handle(Reported(name, told), now)
        elif kind == "tick":
            self.handle(Ticked(), now)

    def check(self) -> None:
        members = [h.name for macro in self.core.macros for h in macro.members]
        assert sorted(members) == sorted(self.joined), "each in exactly one macro instance"
        upper = self.core.config.routing.macro_upper
        assert all(0 < len(macro.members) <= upper for macro in self.core.macros)
        waiting = {request.request_id for request in self.core.pending}
        assert waiting == {number for number, name in self.open.items() if name is None}
        for number, times in self.asked.items():
            assert self.routes[number] <= times, "no request is routed twice"
        for name, instance in self.core.instances.items():
            assert set(instance.open) == {n for n, where in self.open.items() if where == name}


def config(rule: str) -> RouterCoreConfig:
    return RouterCoreConfig.of(
        routing=rule,
        macro_lower=2,
        macro_upper=3,
        max_pending=5,
        actuator="local",
        scale_cooldown=0,
    )


@settings(deadline=None)
@given(st.sampled_from(RULES), st.lists(st.tuples(operations, st.floats(0.0, 3.0)), max_size=80))
def test_no_request_is_lost_or_routed_twice_and_every_instance_has_one_group(
    rule: str,
    script: list[tuple[tuple, float]],  # type: ignore[type-arg]
) -> None:
    world, now = World(RouterCore(config(rule))), 0.0
    for operation, pause_s in script:
        now += pause_s
        world.operate(operation, now)
        world.check()


@settings(deadline=None)
@given(st.sampled_from(RULES), st.lists(st.tuples(operations, st.floats(0.0, 3.0)), max_size=60))
def test_the_same_events_give_the_same_decisions(
    rule: str,
    script: list[tuple[tuple, float]],  # type: ignore[type-arg]
) -> None:
    world, now = World(RouterCore(config(rule))), 0.0
    for operation, pause_s in script:
        now += pause_s
        world.operate(operation, now)
    again, decisions = RouterCore(config(rule)), []
    for event, at in world.events:
        decisions += again.handle(event, at)
    assert decisions == world.decisions


@settings(deadline=None)
@given(st.sampled_from(RULES), st.lists(st.tuples(operations, st.floats(0.0, 3.0)), max_size=60))
def test_nothing_online_waits_for_ever_while_an_instance_serves(
    rule: str,
    script: list[tuple[tuple, float]],  # type: ignore[type-arg]
) -> None:
    world, now = World(RouterCore(config(rule))), 0.0
    for operation, pause_s in script:
        now += pause_s
        world.operate(operation, now)
    world.operate(("join", "instance 0"), now)
    busy = ("report", "instance 0", -5.0, 100.0, 0)  # no check passes
    step_s = MAX_PENDING_S / 60
    for second in range(150):
        now += step_s
        world.operate(busy, now)
        world.operate(("arrive", 1000 + second, 10, "online"), now)
        oldest = [request.arrived_at for request in world.core.pending if request.kind == "online"]
        if second > 60:
            assert now - min(oldest, default=now) <= MAX_PENDING_S + step_s


def test_a_request_that_is_broken_off_waits_anew() -> None:
    """A stream may have lasted longer than a request may wait."""
    core = RouterCore(config("adaptive"))
    core.handle(Joined(Handler("a")), 0.0)
    core.handle(Reported("a", status("a")), 0.0)
    assert core.handle(Arrived(1, 10), 0.0) == [Route(1, "a")]
    core.handle(Lost("a"), 10 * MAX_PENDING_S)
    assert core.handle(Broken(1, 500), 10 * MAX_PENDING_S) == []
    back_at = 10.5 * MAX_PENDING_S
    assert core.handle(Reported("a", status("a")), back_at) == [Route(1, "a")]
    core.handle(Lost("a"), back_at)
    core.handle(Broken(1, 600), back_at)
    assert core.handle(Ticked(), back_at + NO_INSTANCE_S + 1.0) == [Refuse(1, "no_instance")]


def test_a_request_that_has_waited_for_long_is_not_refused_as_soon_as_no_instance_is_left() -> None:
    """Stages that restart take a moment: those that waited before it wait on."""
    core = RouterCore(config("adaptive"))
    core.handle(Joined(Handler("a")), 0.0)
    full = status("a", pending_prefill_s=100.0, slack_s=0.0)
    core.handle(Reported("a", full), 0.0)
    assert core.handle(Arrived(1, 10), 0.0) == [Route(1, "a")]
    assert core.handle(Arrived(2, 10), 0.0) == []
    lost_at = 2 * NO_INSTANCE_S
    core.handle(Reported("a", full), lost_at)
    core.handle(Lost("a"), lost_at)
    assert core.handle(Ticked(), lost_at + NO_INSTANCE_S - 1.0) == []
    assert core.handle(Ticked(), lost_at + NO_INSTANCE_S + 1.0) == [Refuse(2, "no_instance")]
