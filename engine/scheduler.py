"""The scheduler: a pure object, `handle(event, now) -> messages`.

It owns no socket, no clock, no random number. The same events at the same times give the same
messages, in production, in simulation and in replay.

Laws, held by tests/engine/test_scheduler_laws.py:
  every Submit is answered by exactly one Finished, unless it is aborted;
  every block is free or in exactly one table;
  with anything open and the pipeline ready, a step is in flight.
"""

from array import array
from collections import deque
from dataclasses import dataclass, field
from itertools import compress

from configs.schema import EngineConfig
from engine.batches import MicroBatch, pack
from engine.blocks import BlockLedger
from engine.correction import Correction
from engine.cost_model import CostModel
from engine.counters import Counters
from engine.expectation import Expectation, expectation_of
from engine.lengths import LengthErrors
from engine.logprobs import of_those_left
from engine.messages import (
    Abort,
    EngineReady,
    Event,
    Expect,
    Finished,
    FinishReason,
    Generated,
    Scored,
    StageLost,
    StageReady,
    StageTimes,
    Step,
    StepDone,
    Submit,
)
from engine.policies import make_policy
from engine.policy import Policy
from engine.pool import Pool
from engine.sequence import Sequence, State
from engine.waiting import WaitingQueue

# The assumed distribution of length errors counts as much as so many sequences.
_PRIOR_WEIGHT = 20.0

Outgoing = EngineReady | Generated | Scored | Finished | Step


class ImpossibleSettingsError(Exception):
    """The settings cannot be met by this model on these stages; the text is for the user."""


@dataclass(slots=True)
class InFlight:
    """A step on its way: its rows that sample, and those that are scored, in order."""

    step_id: int
    sampling: list[Sequence]
    scored: list[Sequence]


@dataclass(slots=True)
class Pipeline:
    """One life of the stage group, from the moment that all its stages are ready."""

    epoch: int
    pool: Pool
    policy: Policy
    correction: Correction
    max_model_len: int
    in_flight: deque["InFlight"] = field(default_factory=deque)


class Scheduler:
    """Turns requests into steps for `config.pipeline_parallel_size` stages."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.counters = Counters()
        self.pipeline: Pipeline | None = None
        self._stages_ready: dict[int, StageReady] = {}
        self._newest_epoch = 0
        self._next_step_id = 0
        self._errors = LengthErrors(_PRIOR_WEIGHT)

    def handle(self, event: Event, now: float) -> list[Outgoing]:
        """Take one event and decide; `now` is in seconds and never goes back.

        Raises `ImpossibleSettingsError` when the stages, all ready, cannot serve these settings.
        """
        out: list[Outgoing] = []
        match event:
            case Submit():
                self._submit(event, now, out)
            case Expect():
                self._expect(event)
            case Abort():
                self._abort(event)
            case StepDone():
                self._land(event, out)
            case StageReady():
                self._stage_ready(event, out)
            case StageLost():
                self._stage_lost(event, out)
            case StageTimes():
                self._observe(event, now)
        self._pump(now, out)
        return out

    def _submit(self, submit: Submit, now: float, out: list[Outgoing]) -> None:
        refusal = self._refusal(submit)
        if refusal is not None:
            out.append(Finished(submit.sequence_id, "error", refusal))
            return
        assert self.pipeline is not None
        sequence = Sequence(submit, now, self._expectation(submit, submit.max_tokens))
        self.counters.prompt_tokens += sequence.num_prompt_tokens
        self.pipeline.pool.add(sequence)

    def _expect(self, expect: Expect) -> None:
        pool = self.pipeline.pool if self.pipeline else None
        sequence = pool.find(expect.sequence_id) if pool else None
        if pool is not None and sequence is not None:
            pool.expect(sequence, self._expectation(expect, sequence.submit.max_tokens))

    def _expectation(self, message: Submit | Expect, max_tokens: int) -> Expectation:
        return expectation_of(
            message.predicted_len,
            message.spread,
            max_tokens,
            guess=self.config.predicted_output_len,
            point_spread=self.config.prior_sigma,
        )

    def _refusal(self, submit: Submit) -> str | None:
        """Why a sequence cannot be taken. One that could not fit alone would wait for ever."""
        pipeline, size = self.pipeline, len(submit.prompt_token_ids)
        if pipeline is None:
            return "the pipeline is not ready"
        if pipeline.pool.find(submit.sequence_id) is not None:
            return f"sequence {submit.sequence_id} is already open"
        if not size or size % array("i").itemsize or submit.max_tokens < 1:
            return "a sequence needs at least one prompt token and one output token"
        num_tokens = size // array("i").itemsize + submit.max_tokens
        if num_tokens > pipeline.max_model_len:
            return (
                f"prompt and output of {num_tokens} tokens exceed the longest possible sequence "
                f"of {pipeline.max_model_len} tokens"
            )
        return None

    def _abort(self, abort: Abort) -> None:
        if self.pipeline is None:
            return
        sequence = self.pipeline.pool.find(abort.sequence_id)
        if sequence is not None:
            self.pipeline.pool.finish(sequence)

    def _stage_ready(self, ready: StageReady, out: list[Outgoing]) -> None:
        """Collect the stages of one life of the group; the first of a newer life ends the older."""
        if ready.epoch < self._newest_epoch:
            return  # a late word of a group that is gone
        self._newest_epoch = ready.epoch
        if self.pipeline is not None and self.pipeline.epoch != ready.epoch:
            self._stage_lost(StageLost(self.pipeline.epoch, "the stages were restarted"), out)
        self._stages_ready = {
            stage: other
            for stage, other in self._stages_ready.items()
            if other.epoch == ready.epoch
        }
        self._stages_ready[ready.stage] = ready
        if self.pipeline is None and len(self._stages_ready) == self.config.pipeline_parallel_size:
            self._begin_pipeline(list(self._stages_ready.values()), out)

    def _begin_pipeline(self, stages: list[StageReady], out: list[Outgoing]) -> None:
        block_size, num_stages = self.config.block_size, self.config.pipeline_parallel_size
        num_blocks = min(stage.num_blocks for stage in stages)
        max_model_len = _longest_sequence(
            self.config.max_model_len,
            min(stage.max_model_len for stage in stages),
            num_blocks * block_size,
        )
        measured = {s.stage: CostModel.of(s.costs) for s in stages if s.costs.num_tokens}
        correction = Correction(measured)
        self.pipeline = Pipeline(
            stages[0].epoch,
            Pool(
                BlockLedger(num_blocks, block_size),
                WaitingQueue(),
                self._errors,
                self.counters,
            ),
            make_policy(self.config, num_stages, correction.cost),
            correction,
            max_model_len,
        )
        out.append(EngineReady(num_stages, num_blocks, block_size, max_model_len))

    def _stage_lost(self, lost: StageLost, out: list[Outgoing]) -> None:
        pipeline = self.pipeline
        if pipeline is None or pipeline.epoch != lost.epoch:
            return
        message = f"the pipeline was lost while the request was running: {lost.reason}"
        for sequence in pipeline.pool.open_sequences():
            pipeline.pool.finish(sequence)
            out.append(Finished(sequence.sequence_id, "error", message))
        self.pipeline = None
        self._stages_ready = {}
        self.counters.restarts += 1

    def _observe(self, times: StageTimes, now: float) -> None:
        if self.pipeline is None or times.epoch != self.pipeline.epoch:
            return
        step_ids, seconds = memoryview(times.step_ids), memoryview(times.seconds)
        self.pipeline.correction.observe(times.stage, step_ids.cast("q"), seconds.cast("d"), now)

    def _land(self, done: StepDone, out: list[Outgoing]) -> None:
        """A step has come back: hand its tokens to its rows."""
        pipeline = self.pipeline
        if pipeline is None or done.epoch != pipeline.epoch:
            return
        step = pipeline.in_flight.popleft()
        pipeline.pool.num_in_flight -= 1
        assert step.step_id == done.step_id, "steps come back in the order they were sent"
        pool, token_ids, has_finished = pipeline.pool, array("i", done.token_ids), State.FINISHED
        logprobs = done.logprobs
        for sequence, scores in zip(step.scored, done.scores, strict=True):
            if sequence.state is not has_finished:
                out.append(Scored(sequence.sequence_id, scores))
        alive = [sequence for sequence in step.sampling if sequence.state is not has_finished]
        if len(alive) < len(step.sampling):
            is_alive = [sequence.state is not has_finished for sequence in step.sampling]
            token_ids = array("i", compress(token_ids, is_alive))
            logprobs = logprobs and of_those_left(logprobs, is_alive)
        ended = []
        for sequence, token_id in zip(alive, token_ids, strict=True):
            own_ids = sequence.token_ids
            own_ids.append(token_id)
            if token_id in sequence.stop_token_ids or len(own_ids) >= sequence.longest_len:
                ended.append(sequence)
        pool.make_ready(alive)
        if alive:
            self.counters.generated_tokens += len(alive)
            ids = array("q", [sequence.sequence_id for sequence in alive])
            out.append(Generated(ids.tobytes(), token_ids.tobytes(), logprobs))
        for sequence in ended:
            self._end(pool, sequence, out)

    def _end(self, pool: Pool, sequence: Sequence, out: list[Outgoing]) -> None:
        """It has met a stop token, perhaps too early to count, or its limit."""
        if sequence.has_stopped():
            reason: FinishReason = "stop"
        elif len(sequence.token_ids) >= sequence.longest_len:
            reason = "length"
        else:
            return
        pool.finish(sequence)
        self._errors.observe(sequence.num_generated, sequence.expected)
        out.append(Finished(sequence.sequence_id, reason))

    def _pump(self, now: float, out: list[Outgoing]) -> None:
        """Keep as many micro-batches in flight as the policy wants, as long as it has any."""
        pipeline = self.pipeline
        if pipeline is None:
            return
        while len(pipeline.in_flight) < pipeline.policy.max_in_flight:
            batch = pipeline.policy.next_micro_batch(pipeline.pool, now)
            if batch is None:
                break
            out.append(self._launch(pipeline, batch))

    def _launch(self, pipeline: Pipeline, batch: MicroBatch) -> Step:
        step_id = self._next_step_id
        step = pack(batch, pipeline.epoch, step_id, self.config.block_size, pipeline.pool.seats)
        pipeline.pool.launch(batch.sequences, batch.num_tokens)
        sampling = list(compress(batch.sequences, step.samples))
        scored = [batch.sequences[row.row] for row in step.scored]
        pipeline.in_flight.append(InFlight(step_id, sampling, scored))
        pipeline.pool.num_in_flight += 1
        pipeline.correction.launch(step_id, batch.size)
        self._next_step_id += 1
        self.counters.steps += 1
        return step


def _longest_sequence(wanted: int | None, model: int, kv_tokens: int) -> int:
    """The longest prompt + output: as asked for, or as far as model and KV cache reach."""
    if wanted is None:
        return min(model, kv_tokens)
    if wanted > model:
        raise ImpossibleSettingsError(
            f"max_model_len {wanted} is more than the model's own limit of {model} tokens"
        )
    if wanted > kv_tokens:
        raise ImpossibleSettingsError(
            f"max_model_len {wanted} does not fit the KV cache of {kv_tokens} tokens; "
            "raise kv_cache_memory_bytes or gpu_memory_utilization, or lower max_model_len"
        )
    return wanted
