"""Laws of the router's core, whatever happens in whatever order."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st

from configs.schema.router import RouterCoreConfig
from router.decisions.core import RouterCore
from router.decisions.messages import (
    Arrived,
    Began,
    Broken,
    Decision,
    Ended,
    Event,
    Handler,
    Joined,
    Kind,
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
Item = TypeVar("Item")
MAX_PENDING_S = RouterCoreConfig().routing.max_pending_time
NO_INSTANCE_S = RouterCoreConfig().routing.no_instance_timeout

# The i-th of what there is, so that most operations have an effect.
index = st.integers(0, 30)
slacks = st.one_of(st.none(), st.floats(-2.0, 10.0))
pending = st.one_of(st.just(0.0), st.floats(0.0, 8.0))
free_tokens = st.one_of(st.just(20_000), st.integers(0, 20_000))
operations = st.one_of(
    st.tuples(st.just("arrive"), st.integers(1, 6000), st.sampled_from(["online", "offline"])),
    st.tuples(st.just("end"), index),
    st.tuples(st.just("begin"), index),
    st.tuples(st.just("break_off"), index, st.integers(0, 50)),
    st.tuples(st.just("join"), st.sampled_from(NAMES)),
    st.tuples(st.just("leave"), index),
    st.tuples(st.just("lose"), index, st.booleans()),
    st.tuples(st.just("report"), index, slacks, pending, free_tokens),
    st.tuples(st.just("stray"), st.sampled_from(NAMES), index),
    st.tuples(st.just("tick")),
)
# Short ones reach too little: hypothesis makes lists of five on average unless told otherwise.
scripts = st.lists(st.tuples(operations, st.floats(0.0, 3.0)), min_size=40, max_size=80)


@dataclass
class World:
    """What a process would know: who is open where, and what the core has decided."""

    core: RouterCore
    open: dict[int, str | None] = field(default_factory=dict)
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
        getattr(self, kind)(now, *rest)

    def arrive(self, now: float, num_tokens: int, kind: Kind) -> None:
        number = len(self.asked)
        self.open[number] = None
        self.asked[number] += 1
        self.handle(Arrived(number, num_tokens, kind=kind), now)

    def end(self, now: float, i: int) -> None:
        for number in _pick(self.open, i):
            del self.open[number]
            self.handle(Ended(number), now)

    def begin(self, now: float, i: int) -> None:
        for number in _pick(self.routed(), i):
            self.handle(Began(number), now)

    def break_off(self, now: float, i: int, num_done: int) -> None:
        for number in _pick(self.routed(), i):
            self.open[number] = None
            self.asked[number] += 1
            self.handle(Broken(number, num_done), now)

    def join(self, now: float, name: str) -> None:
        self.joined.add(name)
        self.handle(Joined(Handler(name)), now)

    def leave(self, now: float, i: int) -> None:
        for name in _pick(sorted(self.joined), i):
            self.handle(Leaving(name), now)

    def lose(self, now: float, i: int, is_gone: bool) -> None:
        for name in _pick(sorted(self.joined), i):
            self.handle(Lost(name, is_gone=is_gone), now)

    def report(
        self, now: float, i: int, slack_s: float | None, pending_s: float, free: int
    ) -> None:
        promised = {"pending_prefill_s": pending_s, "slot_prefill_s": pending_s}
        for name in _pick(sorted(self.joined), i):
            told = status(name, slack_s=slack_s, free_kv_tokens=free, **promised)
            self.handle(Reported(name, told), now)

    def stray(self, now: float, name: str, number: int) -> None:
        """Events about what has ended, or was never there."""
        if name not in self.joined:
            for event in (Leaving(name), Lost(name), Reported(name, status(name))):
                self.handle(event, now)
        if number not in self.open:
            for late in (Began(number), Broken(number, 1), Ended(number)):
                self.handle(late, now)

    def tick(self, now: float) -> None:
        self.handle(Ticked(), now)

    def routed(self) -> list[int]:
        return [number for number, name in self.open.items() if name is not None]

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
            assert instance.open or not instance.is_leaving, "removed once it is drained"


def _pick(options: Iterable[Item], i: int) -> list[Item]:
    """The i-th in a cycle; nothing if there are none."""
    each = list(options)
    return [each[i % len(each)]] if each else []


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
@given(st.sampled_from(RULES), scripts)
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
@given(st.sampled_from(RULES), scripts)
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
@given(st.sampled_from(RULES), scripts)
def test_nothing_online_waits_for_ever_while_an_instance_serves(
    rule: str,
    script: list[tuple[tuple, float]],  # type: ignore[type-arg]
) -> None:
    world, now = World(RouterCore(config(rule))), 0.0
    for operation, pause_s in script:
        now += pause_s
        world.operate(operation, now)
    world.operate(("join", "instance 0"), now)
    step_s = MAX_PENDING_S / 60
    for second in range(150):
        now += step_s
        world.report(now, 0, -5.0, 100.0, 0)  # no check passes
        world.operate(("arrive", 10, "online"), now)
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
