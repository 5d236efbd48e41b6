"""The simulation: the production scheduler in virtual time, with a cost model for the stages.

The scheduler has the same class as in production and gets the same events. On each stage, a step
takes the time that the cost model gives plus a fixed overhead. It moves to the next stage after a
hop, and waits there while the stage is busy. There are no random numbers, so the same arrivals give
the same run.

With virtual stages, a step passes each stage once for each of its slices. A slice takes an equal
part of the stage's time, but the whole overhead, and there is a hop after each.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import islice

from msgspec import structs

from configs.config import EngineConfig
from engine.costs.cost_model import CostModel, StepSize
from engine.scheduler import Outgoing, Scheduler
from engine.state.counters import Counters
from engine.trace.trace_file import Gauges, Span
from wire.messages import (
    Event,
    Finished,
    Generated,
    StageCosts,
    StageReady,
    Step,
    StepDone,
    Submit,
)
from workers.slice_order import PATIENCE, SliceOrder

STOP_TOKEN = 1
_OTHER_TOKEN = 0


@dataclass(frozen=True, slots=True)
class Node:
    """The simulated stages.

    `costs` has the step costs of each stage, without `overhead_s`, which is added to every step on
    every stage. `hop_s` is the time until activations reach the next stage, and the time until
    sampled tokens reach the engine.
    `engine_s` is the time of the engine: from the moment when sampled tokens have reached it until
    the step that it plans with them has reached the stages. `num_blocks` is the size of the KV
    cache, `max_model_len` is in tokens. Each stage has `num_slices` virtual stages.
    """

    costs: tuple[StageCosts, ...]
    num_blocks: int
    max_model_len: int
    overhead_s: float = 0.0
    hop_s: float = 0.0
    engine_s: float = 0.0
    num_slices: int = 1


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and the real length of its output, which the scheduler does not know.

    The tokens of its prompt are those of nobody else, unless `prompt` is given. With `after`, it is
    the next turn of a conversation: it arrives `at_s` seconds after the end of the arrival with
    that index, and its prompt begins with that one's prompt and output; `prompt` has the others.
    """

    at_s: float
    num_prompt_tokens: int
    output_len: int
    predicted_len: int = 0
    offline: bool = True
    spread: float = 0.0
    prompt: tuple[int, ...] | None = None
    after: int | None = None


@dataclass(slots=True)
class SequenceTimes:
    """The times of a request, in seconds since the start of the run; -1 until they are known.

    Lengths are in tokens.
    """

    arrived_at: float
    num_prompt_tokens: int
    output_len: int
    first_token_at: float = -1.0
    ended_at: float = -1.0


@dataclass(slots=True)
class Run:
    """The result of a simulation.

    The drain of a stage begins when the stage has run its last prefill step; before, it was busy
    for `busy_before_drain_s`. Lists of seconds have one entry per stage.
    """

    sequences: list[SequenceTimes]
    counters: Counters
    makespan_s: float = 0.0
    busy_s: list[float] = field(default_factory=list)
    drain_began_at: list[float] = field(default_factory=list)
    busy_before_drain_s: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    gauges: list[Gauges] = field(default_factory=list)


def simulate(
    config: EngineConfig,
    node: Node,
    arrivals: Sequence[Arrival],
    *,
    record: bool = False,
    max_open: int | None = None,
) -> Run:
    """Serve the arrivals on an initially empty node until all have ended.

    With `max_open`, at most `max_open` requests are open: the next one arrives when another has
    ended, and its `at_s` is ignored. With `record`, spans and gauges are kept for a timeline.
    Raises `ImpossibleSettingsError` if the node does not support the settings, and
    `SimulationError` if a request is refused.
    """
    simulation = _Simulation(config, node, arrivals, record=record)
    simulation.run(len(arrivals) if max_open is None else max_open)
    return simulation.result


class SimulationError(Exception):
    """A request was refused or never ended; the message is shown to the user."""


@dataclass(frozen=True, slots=True)
class _Passing:
    """A step on its way through the virtual stages, which arrives at this slice of this stage."""

    step: Step
    size: StepSize
    slice_index: int = 0
    stage: int = 0


@dataclass(frozen=True, slots=True)
class _Choice:
    """A stage chooses what it runs next, unless it is busy; `is_patient` before it has waited."""

    stage: int
    is_patient: bool = True


class _Simulation:
    def __init__(
        self, config: EngineConfig, node: Node, arrivals: Sequence[Arrival], *, record: bool
    ) -> None:
        self._scheduler = Scheduler(config)
        self._node = node
        self._longest = min(node.max_model_len, node.num_blocks * config.cache.block_size)
        self._first_own_token = 1 + max((max(a.prompt or (1,)) for a in arrivals), default=1)
        self._conversations: dict[int, array[int]] = {}  # prompts and outputs that others continue
        first = ((i, a) for i, a in enumerate(arrivals) if a.after is None)
        self._arrivals: Iterator[tuple[int, Arrival]] = first
        self._followers: dict[int, list[tuple[int, Arrival]]] = {}
        for i, arrival in enumerate(arrivals):
            if arrival.after is not None:
                self._followers.setdefault(arrival.after, []).append((i, arrival))
        self._record = record
        self._models = [CostModel.of(costs) for costs in node.costs]
        self._free_at = [0.0] * len(node.costs)
        self._handed_at: dict[int, float] = {}  # when the first stage has a step's tokens
        self._remaining = [arrival.output_len for arrival in arrivals]
        window = len(node.costs)
        self._orders = [SliceOrder(node.num_slices, None if i else window) for i in range(window)]
        self._patience_s = 0.0  # of the first stage
        self._passing: dict[tuple[int, int, int], _Passing] = {}  # stage, slice and step that wait
        self._events: list[tuple[float, int, Event | _Passing | _Choice]] = []
        self._num_events = 0
        sequences = [SequenceTimes(a.at_s, a.num_prompt_tokens, a.output_len) for a in arrivals]
        self.result = Run(sequences, self._scheduler.counters, busy_s=[0.0] * len(node.costs))
        self.result.drain_began_at = [0.0] * len(node.costs)
        self.result.busy_before_drain_s = [0.0] * len(node.costs)

    def run(self, max_open: int) -> None:
        for stage, costs in enumerate(self._node.costs):
            overhead_s = self._node.num_slices * self._node.overhead_s
            seconds = tuple(s + overhead_s for s in costs.seconds)
            reported = structs.replace(costs, seconds=seconds)
            self._push(
                0.0, StageReady(stage, 1, self._node.num_blocks, self._node.max_model_len, reported)
            )
        for sequence_id, arrival in islice(self._arrivals, max_open):
            self._push(arrival.at_s, self._submit(sequence_id, arrival))
        now = 0.0
        while self._events:
            at, _, event = heappop(self._events)
            if isinstance(event, _Passing):
                self._arrive_at_slice(event, at)
                continue
            if isinstance(event, _Choice):
                self._run_slice(event, at)
                continue
            now = at
            for message in self._scheduler.handle(event, now):
                self._handle(message, now)
            if self._record and isinstance(event, StepDone):
                self._record_gauges(now)
        self.result.makespan_s = now
        num_open = sum(times.ended_at < 0 for times in self.result.sequences)
        if num_open:
            raise SimulationError(f"the scheduler stopped although {num_open} requests are open")

    def _submit(self, sequence_id: int, arrival: Arrival) -> Submit:
        return Submit(
            sequence_id,
            self._prompt(sequence_id, arrival),
            max(arrival.output_len, self._longest - arrival.num_prompt_tokens),
            stop_token_ids=(STOP_TOKEN,),
            predicted_len=arrival.predicted_len,
            offline=arrival.offline,
            spread=arrival.spread,
        )

    def _prompt(self, sequence_id: int, arrival: Arrival) -> bytes:
        """The packed tokens of the prompt."""
        tokens = array("i")
        if arrival.after is not None:
            tokens += self._conversations[arrival.after]
        if arrival.prompt is not None:
            tokens += array("i", arrival.prompt)
        own = arrival.num_prompt_tokens - len(tokens)
        tokens += array("i", [self._first_own_token + sequence_id]) * own
        if sequence_id in self._followers:
            output = array("i", [_OTHER_TOKEN]) * (arrival.output_len - 1)
            self._conversations[sequence_id] = tokens + output + array("i", [STOP_TOKEN])
        return tokens.tobytes()

    def _push(self, at: float, event: Event | _Passing | _Choice) -> None:
        heappush(self._events, (at, self._num_events, event))
        self._num_events += 1

    def _handle(self, message: Outgoing, now: float) -> None:
        match message:
            case Step():
                self._run_step(message, now)
            case Generated():
                for sequence_id in memoryview(message.sequence_ids).cast("q"):
                    times = self.result.sequences[sequence_id]
                    if times.first_token_at < 0:
                        times.first_token_at = now
            case Finished():
                if message.reason == "error":
                    raise SimulationError(message.message)
                self.result.sequences[message.sequence_id].ended_at = now
                self._arrive_after(message.sequence_id, now)

    def _arrive_after(self, sequence_id: int, now: float) -> None:
        """Submit what follows a request that has ended; otherwise, the next of all."""
        followers = self._followers.get(sequence_id)
        for next_id, arrival in followers or islice(self._arrivals, 1):
            at = now + arrival.at_s if followers else now
            self.result.sequences[next_id].arrived_at = at
            self._push(at, self._submit(next_id, arrival))

    def _run_step(self, step: Step, now: float) -> None:
        """Compute the times of a step on all stages, which run steps in order."""
        size = size_of(step)
        arrives_at = now + self._node.engine_s
        if self._node.num_slices > 1:
            self._push(arrives_at, _Passing(step, size))
            return
        if step.follows >= 0:
            arrives_at = max(arrives_at, self._handed_at[step.follows])
        for stage, model in enumerate(self._models):
            began_at = max(arrives_at, self._free_at[stage])
            seconds = model.step_s(size) + self._node.overhead_s
            self._count(stage, step, size, began_at, seconds)
            arrives_at = began_at + seconds + self._node.hop_s
        self._handed_at[step.step_id] = arrives_at
        self._handed_at.pop(step.step_id - 4 * len(self._models), None)
        self._push(arrives_at, StepDone(step.epoch, step.step_id, self._sampled_ids(step)))

    def _arrive_at_slice(self, passing: _Passing, now: float) -> None:
        stage, step_id = passing.stage, passing.step.step_id
        self._passing[stage, passing.slice_index, step_id] = passing
        self._orders[stage].arrive(passing.slice_index, step_id)
        # Not at once: another step may arrive at the same time.
        self._push(now, _Choice(stage))

    def _run_slice(self, choice: _Choice, now: float) -> None:
        """Run what the slice order chooses, and send it to the next virtual stage."""
        stage, order = choice.stage, self._orders[choice.stage]
        if self._free_at[stage] > now:
            return
        if order.is_early and choice.is_patient:
            at = self._free_at[stage] + self._patience_s
            self._push(max(now, at), _Choice(stage, is_patient=False))
            return
        chosen = order.take()
        if chosen is None:
            return
        node, passing = self._node, self._passing.pop((stage, *chosen))
        seconds = self._models[stage].step_s(passing.size) / node.num_slices + node.overhead_s
        self._count(stage, passing.step, passing.size, now, seconds)
        if stage == 0:
            self._patience_s = PATIENCE * seconds
        arrives_at = now + seconds + node.hop_s
        if stage < len(node.costs) - 1:
            self._push(arrives_at, replace(passing, stage=stage + 1))
        elif passing.slice_index < node.num_slices - 1:
            around = replace(passing, stage=0, slice_index=passing.slice_index + 1)
            self._push(arrives_at, around)
        else:
            step = passing.step
            self._push(arrives_at, StepDone(step.epoch, step.step_id, self._sampled_ids(step)))
        # After the push of the arrival, which comes first if there is no hop.
        self._push(now + seconds, _Choice(stage))

    def _count(
        self, stage: int, step: Step, size: StepSize, began_at: float, seconds: float
    ) -> None:
        """Count the time in which a stage is busy with a step, or with a slice of it."""
        result, ended_at = self.result, began_at + seconds
        self._free_at[stage] = ended_at
        result.busy_s[stage] += seconds
        if step.phase != "decode":
            result.drain_began_at[stage] = ended_at
            result.busy_before_drain_s[stage] = result.busy_s[stage]
        if self._record:
            rows, tokens = size.num_rows, size.num_tokens
            result.spans.append(
                Span(stage, step.step_id, step.phase, rows, tokens, began_at, ended_at)
            )

    def _sampled_ids(self, step: Step) -> bytes:
        token_ids, remaining = array("i"), self._remaining
        for sequence_id, samples in zip(
            memoryview(step.sequence_ids).cast("q"), step.samples, strict=True
        ):
            if samples:
                remaining[sequence_id] -= 1
                token_ids.append(_OTHER_TOKEN if remaining[sequence_id] else STOP_TOKEN)
        return token_ids.tobytes()

    def _record_gauges(self, now: float) -> None:
        pool = self._scheduler.pool
        self.result.gauges.append(
            Gauges(
                now,
                pool.ledger.num_used,
                pool.ledger.num_blocks,
                len(pool.waiting),
                pool.num_live,
            )
        )


def size_of(step: Step) -> StepSize:
    """Return the size of a step, which determines how long the step takes."""
    starts, counts = memoryview(step.start_positions).cast("i"), memoryview(step.num_tokens)
    num_tokens, num_rows, num_pairs = len(step.token_ids) // 4, len(step.samples), 0.0
    if num_tokens > num_rows:
        for start, count in zip(starts, counts.cast("i"), strict=True):
            if count > 1:
                num_pairs += count * (start + (count + 1) / 2)
    return StepSize(num_tokens, num_rows, sum(starts), num_pairs)
