"""The simulated pipeline: a production scheduler, and its stages in virtual time.

On each stage, a step takes the time that the cost model gives plus a fixed overhead. It moves to
the next stage after a hop, and waits there while the stage is busy. With virtual stages, a step
passes each stage once for each of its slices. A slice takes an equal part of the stage's time, but
the whole overhead, and there is a hop after each.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from typing import Any, Protocol

from msgspec import structs

from configs.config import EngineConfig
from engine.costs.cost_model import CostModel, StepSize
from engine.scheduler import Outgoing, Scheduler
from engine.trace.trace_file import Gauges, Span
from wire.messages import Event, StageCosts, StageReady, Step, StepDone
from workers.slice_order import PATIENCE, SliceOrder

STOP_TOKEN = 1
OTHER_TOKEN = 0


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


class Target(Protocol):
    """What takes events."""

    def take(self, event: Any, now: float) -> None:
        """Process an event at `now` (seconds)."""
        ...


class EventQueue:
    """Events in virtual time; those of the same time in the order in which they were pushed."""

    def __init__(self) -> None:
        self._events: list[tuple[float, int, Target, Any]] = []
        self._num_events = 0

    def push(self, at: float, target: Target, event: Any) -> None:
        """Let `target` take the event at `at` (seconds)."""
        heappush(self._events, (at, self._num_events, target, event))
        self._num_events += 1

    def run(self, until: float = float("inf")) -> None:
        """Pass all events up to this time to their targets."""
        events = self._events
        while events and events[0][0] <= until:
            at, _, target, event = heappop(events)
            target.take(event, at)


@dataclass(slots=True)
class StageFigures:
    """What the stages of a pipeline did; lists of seconds have one entry per stage.

    The drain of a stage begins when the stage has run its last prefill step; before, it was busy
    for `busy_before_drain_s`.
    """

    busy_s: list[float] = field(default_factory=list)
    drain_began_at: list[float] = field(default_factory=list)
    busy_before_drain_s: list[float] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    gauges: list[Gauges] = field(default_factory=list)


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


class SimulatedPipeline:
    """A scheduler and its stages.

    `remaining` has the output tokens that each sequence still generates. Messages to the server are
    passed to `on_message` with their time, and each event of the scheduler to `on_event` after it;
    `now` is the time of the last of them.
    """

    def __init__(
        self,
        config: EngineConfig,
        node: Node,
        queue: EventQueue,
        remaining: dict[int, int],
        on_message: Callable[[Outgoing, float], None],
        *,
        record: bool = False,
    ) -> None:
        self.scheduler = Scheduler(config)
        self.now = 0.0
        num_stages = len(node.costs)
        busy, drains, before = ([0.0] * num_stages for _ in range(3))
        self.figures = StageFigures(busy, drains, before)
        self._node, self._queue, self._remaining = node, queue, remaining
        self._on_message, self._record = on_message, record
        self._models = [CostModel.of(costs) for costs in node.costs]
        self._free_at = [0.0] * num_stages
        self._handed_at: dict[int, float] = {}  # when the first stage has a step's tokens
        self._orders = [
            SliceOrder(node.num_slices, None if i else num_stages) for i in range(num_stages)
        ]
        self._patience_s = 0.0  # of the first stage
        self._passing: dict[tuple[int, int, int], _Passing] = {}  # stage, slice and step that wait
        self._free_prefills: dict[int, int] = {}
        self.on_event: Callable[[Event, float], None] | None = None

    def start(self, now: float = 0.0) -> None:
        """Let all stages be ready at `now`."""
        for stage, costs in enumerate(self._node.costs):
            overhead_s = self._node.num_slices * self._node.overhead_s
            seconds = tuple(s + overhead_s for s in costs.seconds)
            reported = structs.replace(costs, seconds=seconds)
            ready = StageReady(stage, 1, self._node.num_blocks, self._node.max_model_len, reported)
            self._queue.push(now, self, ready)

    def has_kv(self, sequence_id: int, num_tokens: int) -> None:
        """The KV of a sequence's first tokens comes from elsewhere: feeding them costs nothing."""
        self._free_prefills[sequence_id] = num_tokens

    def take(self, event: "Event | _Passing | _Choice", now: float) -> None:
        """See `Target.take`."""
        if isinstance(event, _Passing):
            self._arrive_at_slice(event, now)
            return
        if isinstance(event, _Choice):
            self._run_slice(event, now)
            return
        self.now = now
        for message in self.scheduler.handle(event, now):
            if isinstance(message, Step):
                self._run_step(message, now)
            else:
                self._on_message(message, now)
        if self.on_event is not None:
            self.on_event(event, now)
        if self._record and isinstance(event, StepDone):
            self._record_gauges(now)

    def _run_step(self, step: Step, now: float) -> None:
        """Compute the times of a step on all stages, which run steps in order."""
        size = self._size_of(step)
        arrives_at = now + self._node.engine_s
        if self._node.num_slices > 1:
            self._queue.push(arrives_at, self, _Passing(step, size))
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
        self._queue.push(
            arrives_at, self, StepDone(step.epoch, step.step_id, self._sampled_ids(step))
        )

    def _arrive_at_slice(self, passing: _Passing, now: float) -> None:
        stage, step_id = passing.stage, passing.step.step_id
        self._passing[stage, passing.slice_index, step_id] = passing
        self._orders[stage].arrive(passing.slice_index, step_id)
        # Not at once: another step may arrive at the same time.
        self._queue.push(now, self, _Choice(stage))

    def _run_slice(self, choice: _Choice, now: float) -> None:
        """Run what the slice order chooses, and send it to the next virtual stage."""
        stage, order = choice.stage, self._orders[choice.stage]
        if self._free_at[stage] > now:
            return
        if order.is_early and choice.is_patient:
            at = self._free_at[stage] + self._patience_s
            self._queue.push(max(now, at), self, _Choice(stage, is_patient=False))
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
            self._queue.push(arrives_at, self, replace(passing, stage=stage + 1))
        elif passing.slice_index < node.num_slices - 1:
            around = replace(passing, stage=0, slice_index=passing.slice_index + 1)
            self._queue.push(arrives_at, self, around)
        else:
            step = passing.step
            self._queue.push(
                arrives_at, self, StepDone(step.epoch, step.step_id, self._sampled_ids(step))
            )
        # After the push of the arrival, which comes first if there is no hop.
        self._queue.push(now + seconds, self, _Choice(stage))

    def _count(
        self, stage: int, step: Step, size: StepSize, began_at: float, seconds: float
    ) -> None:
        """Count the time in which a stage is busy with a step, or with a slice of it."""
        figures, ended_at = self.figures, began_at + seconds
        self._free_at[stage] = ended_at
        figures.busy_s[stage] += seconds
        if step.phase != "decode":
            figures.drain_began_at[stage] = ended_at
            figures.busy_before_drain_s[stage] = figures.busy_s[stage]
        if self._record:
            rows, tokens = size.num_rows, size.num_tokens
            figures.spans.append(
                Span(stage, step.step_id, step.phase, rows, tokens, began_at, ended_at)
            )

    def _sampled_ids(self, step: Step) -> bytes:
        token_ids, remaining = array("i"), self._remaining
        for sequence_id, samples in zip(
            memoryview(step.sequence_ids).cast("q"), step.samples, strict=True
        ):
            if samples:
                remaining[sequence_id] -= 1
                token_ids.append(OTHER_TOKEN if remaining[sequence_id] else STOP_TOKEN)
        return token_ids.tobytes()

    def _record_gauges(self, now: float) -> None:
        pool = self.scheduler.pool
        self.figures.gauges.append(
            Gauges(
                now,
                pool.ledger.num_used,
                pool.ledger.num_blocks,
                len(pool.waiting),
                pool.num_live,
            )
        )

    def _size_of(self, step: Step) -> StepSize:
        size = size_of(step)
        if not self._free_prefills:
            return size
        starts, counts = memoryview(step.start_positions).cast("i"), memoryview(step.num_tokens)
        for sequence_id, start, count in zip(
            memoryview(step.sequence_ids).cast("q"), starts, counts.cast("i"), strict=True
        ):
            num_free = min(count, self._free_prefills.get(sequence_id, 0) - start)
            if num_free > 0:
                pairs = num_free * (start + (num_free + 1) / 2) if count > 1 else 0.0
                size = StepSize(
                    size.num_tokens - num_free,
                    size.num_rows,
                    size.kv_tokens,
                    size.num_pairs - pairs,
                )
        return size


def size_of(step: Step) -> StepSize:
    """Return the size of a step, which determines how long the step takes."""
    starts, counts = memoryview(step.start_positions).cast("i"), memoryview(step.num_tokens)
    num_tokens, num_rows, num_pairs = len(step.token_ids) // 4, len(step.samples), 0.0
    if num_tokens > num_rows:
        for start, count in zip(starts, counts.cast("i"), strict=True):
            if count > 1:
                num_pairs += count * (start + (count + 1) / 2)
    return StepSize(num_tokens, num_rows, sum(starts), num_pairs)
