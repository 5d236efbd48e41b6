"""The production router and production schedulers in one virtual time.

A request passes the network three times: from the client to the router, which is not counted, from
there to an instance (`hop_s`), and its tokens back again. Statuses take the same way. Instances
that the router wants more of serve after `boot_s`; those that it wants to lose are stopped when
they have drained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from configs.schema.router import RouterCoreConfig
from engine.scheduler import Outgoing
from router.decisions.core import RouterCore
from router.decisions.messages import (
    Arrived,
    Began,
    Ended,
    Event,
    Grow,
    Handler,
    Joined,
    Leaving,
    Refuse,
    Removed,
    Reported,
    Route,
    Shrink,
    Ticked,
)
from simulator.arrival import Arrival, SequenceTimes
from simulator.macro.instance import STATUS_S, InstanceSpec, SimulatedInstance
from simulator.pipeline import STOP_TOKEN, EventQueue
from simulator.prompts import Prompts
from simulator.simulation import SimulationError
from wire.instance_status import InstanceStatus
from wire.messages import Finished, Generated, Submit
from wire.prefix_keys import chained_keys

KEY_TOKENS = 128
"""Tokens for which a prompt has one prefix key."""


@dataclass(slots=True)
class MacroRun:
    """The result: the times of each request, and how many instances there were from when on."""

    sequences: list[SequenceTimes]
    num_refused: int = 0
    makespan_s: float = 0.0
    num_instances: list[tuple[float, int]] = field(default_factory=list)
    hits: int = 0
    queries: int = 0

    def instance_seconds(self) -> float:
        """The sum of the seconds of all instances, until the last request ended."""
        ends = [at for at, _ in self.num_instances[1:]] + [self.makespan_s]
        pairs = zip(self.num_instances, ends, strict=True)
        return sum(number * max(0.0, end - at) for (at, number), end in pairs)


def simulate_macro(
    config: RouterCoreConfig,
    specs: Sequence[InstanceSpec],
    arrivals: Sequence[Arrival],
    *,
    hop_s: float = 0.0003,
    boot_s: float = 60.0,
    is_hopeless: Callable[[Sequence[SequenceTimes], float], bool] = lambda _, __: False,
) -> MacroRun:
    """Serve the arrivals with a router and one instance for each of `specs`.

    More instances, if the router scales, are like the first one. The run ends early if
    `is_hopeless`, which is asked once a second with the times so far; requests that have not ended
    then have `ended_at` < 0. Raises `SimulationError` if an instance refuses a request.
    """
    simulation = _MacroSimulation(config, specs, arrivals, hop_s, boot_s)
    return simulation.run(is_hopeless)


class _MacroSimulation:
    def __init__(
        self,
        config: RouterCoreConfig,
        specs: Sequence[InstanceSpec],
        arrivals: Sequence[Arrival],
        hop_s: float,
        boot_s: float,
    ) -> None:
        self._core = RouterCore(config)
        self._specs, self._arrivals = specs, arrivals
        self._hop_s, self._boot_s = hop_s, boot_s
        self._queue = EventQueue()
        self._prompts = Prompts(arrivals)
        self._made: dict[int, bytes] = {}
        self._keys: dict[int, tuple[int, ...]] = {}  # of prompts that were not prefilled yet
        self._untold: dict[str, list[int]] = {}  # keys that are cached since the last status
        self._followers: dict[int, list[int]] = {}
        for number, arrival in enumerate(arrivals):
            if arrival.after is not None:
                self._followers.setdefault(arrival.after, []).append(number)
        self._remaining = {i: arrival.output_len for i, arrival in enumerate(arrivals)}
        self._num_open = len(arrivals)
        self._instances: dict[str, SimulatedInstance] = {}
        self._num_started, self._is_booting = 0, False
        # As for actuators: those being started count, of which the core knows nothing.
        self._max_instances = config.scaling.max_instances
        sequences = [SequenceTimes(a.at_s, a.num_prompt_tokens, a.output_len) for a in arrivals]
        self.result = MacroRun(sequences)

    def run(self, is_hopeless: Callable[[Sequence[SequenceTimes], float], bool]) -> MacroRun:
        for spec in self._specs:
            self._start(spec, 0.0)
        for number, arrival in enumerate(self._arrivals):
            if arrival.after is None:
                self._queue.push(max(arrival.at_s, STATUS_S), self, number)
        self._queue.push(STATUS_S, self, Ticked())
        at = 0.0
        while self._num_open and not is_hopeless(self.result.sequences, at):
            at += 1.0
            self._queue.run(at)
        if self._num_open:
            self.result.makespan_s = at
        self._count_hits()
        return self.result

    def take(self, event: "Event | int | Callable[[float], None]", now: float) -> None:
        """See `Target.take`; a number is that of an arrival."""
        if not self._num_open:
            return
        if isinstance(event, int):
            self._handle(self._arrived(event, now), now)
        elif callable(event):
            event(now)
        else:
            self._handle(event, now)
            if isinstance(event, Ticked):
                self._queue.push(now + STATUS_S, self, event)

    def _arrived(self, number: int, now: float) -> Arrived:
        arrival = self._arrivals[number]
        self.result.sequences[number].arrived_at = now
        tokens = self._prompts.make(number, arrival)
        self._made[number] = tokens.tobytes()
        self._keys[number] = chained_keys(self._made[number], 4 * KEY_TOKENS)
        return Arrived(
            number,
            len(tokens),
            arrival.predicted_len,
            "offline" if arrival.offline else "online",
            self._keys[number],
            KEY_TOKENS,
        )

    def _handle(self, event: Event, now: float) -> None:
        for decision in self._core.handle(event, now):
            match decision:
                case Route():
                    self._send(decision, now)
                case Refuse():
                    self.result.num_refused += 1
                    self._end(decision.request_id, now)
                case Grow() if len(self._instances) < self._max_instances and not self._is_booting:
                    self._is_booting = True  # actuators start one at a time, too
                    self._queue.push(now + self._boot_s, self, self._boot)
                    self._count(now, 1)
                case Shrink():
                    self._handle(Leaving(decision.names[0]), now)
                case Removed():
                    self._instances.pop(decision.name).is_stopped = True
                    self._count(now, -1)

    def _boot(self, now: float) -> None:
        self._is_booting = False
        self._start(self._specs[0], now)

    def _start(self, spec: InstanceSpec, now: float) -> None:
        name = f"instance {self._num_started}"
        self._num_started += 1
        instance = SimulatedInstance(
            name, spec, self._queue, self._remaining, self._take_message, self._take_status
        )
        self._instances[name] = instance
        self._handle(Joined(Handler(name)), now)  # which may route what waits, too
        instance.start(now)
        if not now:
            self._count(now, 1)

    def _count(self, now: float, change: int) -> None:
        number = self.result.num_instances[-1][1] if self.result.num_instances else 0
        self.result.num_instances.append((now, number + change))

    def _send(self, route: Route, now: float) -> None:
        number, instance = route.request_id, self._instances[route.name]
        arrival, prompt = self._arrivals[number], self._made.pop(number)
        submit = Submit(
            number,
            prompt,
            max(arrival.output_len, instance.longest - arrival.num_prompt_tokens),
            stop_token_ids=(STOP_TOKEN,),
            predicted_len=arrival.predicted_len,
            offline=arrival.offline,
            spread=arrival.spread,
        )
        self._queue.push(now + self._hop_s, instance, submit)

    def _take_message(self, instance: SimulatedInstance, message: Outgoing, now: float) -> None:
        at = now + self._hop_s
        match message:
            case Generated():
                for number in memoryview(message.sequence_ids).cast("q"):
                    times = self.result.sequences[number]
                    if times.first_token_at < 0:
                        self._queue.push(at, self, Began(number))
                        self._note_prefilled(instance, number)
                    times.take_token(at)
            case Finished():
                if message.reason == "error":
                    raise SimulationError(message.message)
                self.result.sequences[message.sequence_id].ended_at = at
                self._queue.push(at, self, Ended(message.sequence_id))
                self._queue.push(at, self, lambda now: self._end(message.sequence_id, now))

    def _note_prefilled(self, instance: SimulatedInstance, number: int) -> None:
        """Its prompt is in the prefix cache. That keys are dropped again is not simulated."""
        keys = self._keys.pop(number, ())
        if instance.has_prefix_cache:
            self._untold.setdefault(instance.name, []).extend(keys)

    def _take_status(self, instance: SimulatedInstance, status: InstanceStatus, now: float) -> None:
        if added := self._untold.pop(instance.name, None):
            status = replace(status, prefix_added=tuple(added))
        self._queue.push(now + self._hop_s, self, Reported(instance.name, status))

    def _end(self, number: int, now: float) -> None:
        self._num_open -= 1
        self.result.makespan_s = now
        for follower in self._followers.get(number, ()):
            self._queue.push(now + self._arrivals[follower].at_s, self, follower)

    def _count_hits(self) -> None:
        for instance in self._instances.values():
            counters = instance.pipeline.scheduler.counters
            self.result.hits += counters.prefix_hits
            self.result.queries += counters.prefix_queries
