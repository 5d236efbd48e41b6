"""The scheduler: `handle(event, now) -> messages`, without I/O.

It uses no socket, no clock and no random numbers. The same events at the same times give the same
messages in production, in the simulator and in replay.

Invariants, checked by tests/engine/test_scheduler_laws.py:
  every Submit gets exactly one Finished, unless it is aborted;
  when the stages are lost, no sequence and no generated token is lost;
  every block is free or in a block table, in several only if they begin with the same tokens;
  while any sequence is open and the pipeline is ready, a step is in flight.
"""

from array import array
from collections import deque
from dataclasses import dataclass, field
from itertools import compress

import numpy as np

from configs.config import EngineConfig
from engine.costs.correction import Correction
from engine.costs.cost_model import CostModel
from engine.policies.policy import Policy
from engine.policies.registry import make_policy
from engine.priority_preemption import PriorityPreemption
from engine.quarantine import Quarantine, record_failure
from engine.state.blocks import BlockLedger
from engine.state.counters import Counters
from engine.state.expectation import Expectation, expectation_of
from engine.state.length_errors import LengthErrors
from engine.state.micro_batch import MicroBatch, pack
from engine.state.pool import Pool
from engine.state.prefix_cache import PrefixCache
from engine.state.rope_lengths import outgrowing
from engine.state.sequence import Sequence, State
from engine.state.sequence_times import SequenceTimes
from engine.state.waiting import WaitingQueue
from engine.token_ids import find_unknown
from wire.messages import (
    Abort,
    EngineReady,
    Event,
    Expect,
    Finished,
    FinishReason,
    Generated,
    Logprobs,
    Milestone,
    Phase,
    PrefixHit,
    RopeRule,
    Scored,
    StageLost,
    StageReady,
    StageTimes,
    Step,
    StepDone,
    Submit,
)

# Weight of the prior distribution of length errors, in sequences.
_PRIOR_WEIGHT = 20.0

Outgoing = EngineReady | Generated | Scored | PrefixHit | Milestone | Finished | Step | StageLost


class ImpossibleSettingsError(Exception):
    """This model on these stages cannot satisfy the settings; the message is shown to the user."""


@dataclass(slots=True)
class InFlight:
    """A step in flight: its rows, the rows that sample, and the rows that are scored.

    Of the sampling rows, the first `num_decodes` are decodes. `phase` is that of the policy.
    """

    step_id: int
    rows: list[Sequence]
    sampling: list[Sequence]
    scored: list[Sequence]
    num_decodes: int
    phase: Phase
    is_ahead: bool = False  # whether its rows were made ready before it is done


@dataclass(slots=True)
class Pipeline:
    """One incarnation of the stage group, from the moment when all its stages are ready."""

    epoch: int
    policy: Policy
    correction: Correction
    priority_preemption: PriorityPreemption
    quarantine: Quarantine | None
    rope: RopeRule | None = None
    in_flight: deque["InFlight"] = field(default_factory=deque)


class Scheduler:
    """Turns requests into steps for `config.pipeline.pipeline_parallel_size` stages.

    `pipeline` is None while not all stages are ready. `max_model_len` is the longest prompt +
    output in tokens; it is 0 until the stages have been ready for the first time. From then on
    sequences are accepted at any time, even while the stages restart. `vocab_size` is the number of
    token ids that every stage knows, or 0 if no stage has reported it.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.counters = Counters()
        self.times = SequenceTimes()
        self.pipeline: Pipeline | None = None
        self.max_model_len = 0
        self.vocab_size = 0
        self._errors = LengthErrors(_PRIOR_WEIGHT)
        self.pool = Pool(
            BlockLedger(0, config.cache.block_size), WaitingQueue(), self._errors, self.counters
        )
        self._stages_ready: dict[tuple[int, int], StageReady] = {}  # by stage and rank
        self._newest_epoch = 0
        self._next_step_id = 0

    def handle(self, event: Event, now: float) -> list[Outgoing]:
        """Process one event and return the messages to send; `now` is in seconds and monotonic.

        Raises `ImpossibleSettingsError` if the stages are ready but cannot satisfy the settings.
        """
        out: list[Outgoing] = []
        match event:
            case Submit():
                self._submit(event, now, out)
            case Expect():
                self._expect(event)
            case Abort():
                self._abort(event, now)
            case StepDone():
                self._complete_step(event, now, out)
            case StageReady():
                self._stage_ready(event, out)
            case StageLost():
                self._stage_lost(event, out)
            case StageTimes():
                self._observe(event, now)
        self._launch_steps(now, out)
        out += self.pool.milestones.take(now)
        return out

    def knows(self, stage: int, tensor_rank: int, epoch: int) -> bool:
        """Whether this rank has reported `StageReady`, or belongs to an epoch that is over."""
        ready = self._stages_ready.get((stage, tensor_rank))
        return self.is_over(epoch) or (ready is not None and ready.epoch == epoch)

    def is_over(self, epoch: int) -> bool:
        """Whether this epoch of the stages is lost, or a newer one is known."""
        return epoch < self._newest_epoch

    @property
    def awaited_step(self) -> int:
        """The step that has been in flight for longest; -1 without any."""
        in_flight = self.pipeline.in_flight if self.pipeline is not None else None
        return in_flight[0].step_id if in_flight else -1

    def _submit(self, submit: Submit, now: float, out: list[Outgoing]) -> None:
        refusal = self._refusal(submit)
        if refusal is not None:
            is_final = bool(self.max_model_len)
            out.append(Finished(submit.sequence_id, "error", refusal, is_final))
            return
        sequence = Sequence(submit, now, self._expectation(submit, submit.max_tokens))
        self.counters.prompt_tokens += sequence.num_prompt_tokens
        self.pool.add(sequence)
        if sequence.num_generated:
            # It may be complete: the previous engine may have died before it sent `Finished`.
            self._end(sequence, now, out)

    def _expect(self, expect: Expect) -> None:
        sequence = self.pool.find(expect.sequence_id)
        if sequence is not None:
            expected = self._expectation(expect, sequence.submit.max_tokens)
            self.pool.expect(sequence, expected)

    def _expectation(self, message: Submit | Expect, max_tokens: int) -> Expectation:
        return expectation_of(
            message.predicted_len,
            message.spread,
            max_tokens,
            guess=self.config.scheduler.predicted_output_len,
            point_spread=self.config.scheduler.temporal.prior_sigma,
        )

    def _refusal(self, submit: Submit) -> str | None:
        """Why the sequence must be refused, or None. Without this check, one that exceeds the KV
        cache would wait forever.
        """
        size = len(submit.prompt_token_ids)
        if not self.max_model_len:
            return "the pipeline is not ready"
        if self.pool.find(submit.sequence_id) is not None:
            return f"sequence {submit.sequence_id} is already open"
        if not size or size % array("i").itemsize or submit.max_tokens < 1:
            return "a sequence needs at least one prompt token and one output token"
        unknown = find_unknown(submit, self.vocab_size) if self.vocab_size else None
        if unknown is not None:
            return f"token id {unknown} is not one of the model's {self.vocab_size} token ids"
        return self._too_long(_num_counted(submit))

    def _too_long(self, num_tokens: int) -> str | None:
        if num_tokens <= self.max_model_len:
            return None
        return (
            f"prompt and output of {num_tokens} tokens exceed the longest possible sequence "
            f"of {self.max_model_len} tokens; shorten the prompt or lower max_tokens"
        )

    def _abort(self, abort: Abort, now: float) -> None:
        sequence = self.pool.find(abort.sequence_id)
        if sequence is not None:
            self.pool.finish(sequence)
            self.times.end(sequence, now)

    def _stage_ready(self, ready: StageReady, out: list[Outgoing]) -> None:
        """Collect the stages of one epoch; the first stage of a newer epoch ends the older one."""
        if ready.epoch < self._newest_epoch:
            return  # a late message of a lost group
        if self.pipeline is not None and self.pipeline.epoch != ready.epoch:
            self._stage_lost(StageLost(self.pipeline.epoch, "the stages were restarted"), out)
        self._newest_epoch = ready.epoch
        self._stages_ready = {
            rank: other for rank, other in self._stages_ready.items() if other.epoch == ready.epoch
        }
        self._stages_ready[ready.stage, ready.tensor_rank] = ready
        if self.pipeline is None and len(self._stages_ready) == self.config.pipeline.num_ranks:
            self._all_stages_ready(out)

    def _all_stages_ready(self, out: list[Outgoing]) -> None:
        """Start the pipeline if all stages report the same last step, maybe of an older engine."""
        stages = [self._stages_ready[rank] for rank in sorted(self._stages_ready)]
        if len({stage.last_step_id for stage in stages}) == 1:
            self._begin_pipeline(stages, out)
            return
        epoch = stages[0].epoch
        self._stages_ready, self._newest_epoch = {}, epoch + 1
        out.append(
            StageLost(epoch, "the last step of the previous engine did not reach all stages")
        )

    def _begin_pipeline(self, stages: list[StageReady], out: list[Outgoing]) -> None:
        block_size, num_stages = (
            self.config.cache.block_size,
            self.config.pipeline.pipeline_parallel_size,
        )
        num_blocks = min(stage.num_blocks for stage in stages)
        shortest = min(stages, key=lambda stage: stage.max_model_len)
        self.max_model_len = _longest_sequence(
            self.config.model.max_model_len, shortest, num_blocks * block_size
        )
        self.vocab_size = min((s.vocab_size for s in stages if s.vocab_size), default=0)
        measured = {s.stage: CostModel.of(s.costs) for s in stages if s.costs.num_tokens}
        correction = Correction(measured, self.config.pipeline.virtual_pipeline_size)
        ledger = BlockLedger(num_blocks, block_size)
        rope = next((stage.rope for stage in stages if stage.rope), None)
        is_invariant = all(stage.batch_invariant for stage in stages)
        is_enabled = self.config.cache.enable_prefix_caching
        self.pool.begin(
            ledger,
            PrefixCache(ledger, is_enabled=is_enabled, is_invariant=is_invariant, rope=rope),
        )
        for sequence in self.pool.open_sequences():
            problem = self._too_long(_num_counted(sequence.submit))
            if problem is not None:  # the new stages have less KV memory
                self._fail(sequence, problem, out)
        suspects = [sequence for sequence in self.pool.waiting if sequence.num_failures]
        self.pipeline = Pipeline(
            stages[0].epoch,
            make_policy(self.config.scheduler, num_stages, correction.cost),
            correction,
            PriorityPreemption(self.config.scheduler, num_stages),
            Quarantine(suspects, num_stages, self.config.scheduler.max_num_batched_tokens),
            rope,
        )
        # Stages that outlived the previous engine may still report steps with its ids.
        self._next_step_id = max(self._next_step_id, stages[0].last_step_id + 1)
        out.append(
            EngineReady(
                num_stages,
                num_blocks,
                block_size,
                self.max_model_len,
                attention=tuple(s.attention for s in stages if not s.tensor_rank),
                batch_invariant=is_invariant,
                vocab_size=self.vocab_size,
                devices=tuple(s.device for s in stages if s.device and not s.tensor_rank),
                dtype=stages[0].dtype,
            )
        )

    def _stage_lost(self, lost: StageLost, out: list[Outgoing]) -> None:
        if lost.epoch < self._newest_epoch:
            return
        pipeline, self.pipeline = self.pipeline, None
        self._stages_ready = {}
        self._newest_epoch = lost.epoch + 1
        self.counters.restarts += 1
        if pipeline is None:
            return  # the pipeline was not ready yet
        rows = {step.step_id: step.rows for step in pipeline.in_flight}
        poison = record_failure(rows, lost.step_id)
        self.pool.lose_stages()
        if poison is not None:
            self.counters.poison_requests += 1
            self._fail(
                poison, f"a stage failed each time it processed this request: {lost.reason}", out
            )

    def _fail(self, sequence: Sequence, message: str, out: list[Outgoing]) -> None:
        self.pool.finish(sequence)
        out.append(Finished(sequence.sequence_id, "error", message, is_final=True))

    def _observe(self, times: StageTimes, now: float) -> None:
        if self.pipeline is None or times.epoch != self.pipeline.epoch:
            return
        step_ids, seconds = memoryview(times.step_ids), memoryview(times.seconds)
        self.pipeline.correction.observe(times.stage, step_ids.cast("q"), seconds.cast("d"), now)

    def _complete_step(self, done: StepDone, now: float, out: list[Outgoing]) -> None:
        """Process the result of a step: append the new tokens to the sequences of its rows."""
        pipeline = self.pipeline
        if pipeline is None or done.epoch != pipeline.epoch:
            return
        step = pipeline.in_flight.popleft()
        self.pool.num_in_flight -= 1
        assert step.step_id == done.step_id, "steps come back in the order they were sent"
        token_ids, finished = array("i", done.token_ids), State.FINISHED
        logprobs = done.logprobs
        for sequence, scores in zip(step.scored, done.scores, strict=True):
            if sequence.state is not finished:
                out.append(Scored(sequence.sequence_id, scores))
        open_rows = [sequence for sequence in step.sampling if sequence.state is not finished]
        if len(open_rows) < len(step.sampling):
            is_open = [sequence.state is not finished for sequence in step.sampling]
            token_ids = array("i", compress(token_ids, is_open))
            logprobs = logprobs and _only_rows(logprobs, is_open)
        is_new = [not sequence.is_pending for sequence in open_rows]
        ended = _append(open_rows, token_ids)
        prefilled = step.sampling[step.num_decodes :]
        self.times.sample(prefilled, now)
        self.pool.milestones.sample(prefilled)
        out += self.pool.milestones.take(now)  # before `Finished`, after which they are ignored
        if pipeline.quarantine is not None:
            pipeline.quarantine.clear(open_rows)
        self.pool.make_ready(list(compress(open_rows, is_new)))
        if open_rows:
            self.counters.generated_tokens += len(open_rows)
            ids = array("q", [sequence.sequence_id for sequence in open_rows])
            out.append(Generated(ids.tobytes(), token_ids.tobytes(), logprobs))
        for sequence in ended:
            self._end(sequence, now, out)
        for sequence in outgrowing(open_rows, pipeline.rope):
            if sequence.state is not finished:
                self.pool.preempt(sequence)

    def _look_ahead(self, pipeline: Pipeline) -> None:
        """Make the rows of the oldest step ready, with placeholders for their next tokens.

        Not those that this token ends, or that must be recomputed because of it. A row that turns
        out to end with a stop token has then been fed once more in vain.
        """
        step, rows, rope = pipeline.in_flight[0], [], pipeline.rope
        step.is_ahead = True
        running, outgrown = State.RUNNING, rope.recompute_len if rope else 0
        for i, sequence in enumerate(step.sampling):
            length = len(sequence.token_ids) + 1
            if sequence.state is running and length < sequence.longest_len:
                if outgrown and length == outgrown + 1:
                    continue
                sequence.token_ids.append(-1 - i)
                sequence.is_pending = True
                rows.append(sequence)
        self.pool.make_ready(rows)

    def _end(self, sequence: Sequence, now: float, out: list[Outgoing]) -> None:
        """Finish a sequence if its last token may stop it, or if it has reached its length."""
        if sequence.has_stopped():
            reason: FinishReason = "stop"
        elif len(sequence.token_ids) >= sequence.longest_len:
            reason = "length"
        else:
            return
        self.pool.finish(sequence)
        self._errors.observe(sequence.num_generated, sequence.expected)
        self.times.end(sequence, now)
        out.append(Finished(sequence.sequence_id, reason))

    def _launch_steps(self, now: float, out: list[Outgoing]) -> None:
        """Launch micro-batches until `max_in_flight` of them run or the policy returns none."""
        pipeline = self.pipeline
        if pipeline is None:
            return
        if pipeline.quarantine is not None and pipeline.quarantine.is_over():
            pipeline.quarantine = None
        policy = pipeline.quarantine or pipeline.policy
        may_launch = len(pipeline.in_flight) < policy.max_in_flight
        if may_launch and pipeline.quarantine is None:
            pipeline.priority_preemption.preempt_offline(self.pool, now)
        looks_ahead = self.config.scheduler.async_scheduling and pipeline.quarantine is None
        while True:
            num_more = policy.max_in_flight - len(pipeline.in_flight)
            if num_more < 0 or (num_more == 0 and not looks_ahead):
                break
            if num_more == 0 and not pipeline.in_flight[0].is_ahead:
                self._look_ahead(pipeline)
            batch = policy.next_micro_batch(self.pool, now)
            if batch is None:
                break
            out.append(self._launch(pipeline, batch, now))
        out += [PrefixHit(*hit) for hit in self.pool.take_hits()]

    def _launch(self, pipeline: Pipeline, batch: MicroBatch, now: float) -> Step:
        step_id = self._next_step_id
        step = pack(
            batch,
            pipeline.epoch,
            step_id,
            self.config.cache.block_size,
            self.pool.sampler_slots,
            pipeline.rope,
            pipeline.in_flight[0].step_id if pipeline.in_flight else -1,
        )
        self.pool.launch(batch.sequences, batch.num_tokens)
        sampling = list(compress(batch.sequences, step.samples))
        scored = [batch.sequences[row.row] for row in step.scored]
        pipeline.in_flight.append(
            InFlight(
                step_id,
                batch.sequences,
                sampling,
                scored,
                batch.num_decodes,
                pipeline.policy.phase,
            )
        )
        self.pool.num_in_flight += 1
        pipeline.correction.launch(step_id, batch.size)
        self._next_step_id += 1
        self.counters.steps += 1
        prefills = batch.sequences[batch.num_decodes :]
        self.times.schedule(prefills, now)
        self.pool.milestones.schedule(prefills)
        if batch.num_decodes and batch.total_tokens > batch.num_decodes:
            self.counters.topups += 1
            self.counters.topup_tokens += batch.total_tokens - batch.num_decodes
        return step


def _append(sequences: list[Sequence], token_ids: "array[int]") -> list[Sequence]:
    """Append its new token to each sequence; return the sequences that this token may end."""
    ended = []
    for sequence, token_id in zip(sequences, token_ids, strict=True):
        own_ids = sequence.token_ids
        if sequence.is_pending:
            own_ids[-1] = token_id
            sequence.is_pending = False
        else:
            own_ids.append(token_id)
        if token_id in sequence.stop_token_ids or len(own_ids) >= sequence.longest_len:
            ended.append(sequence)
    return ended


def _only_rows(logprobs: Logprobs, is_kept: list[bool]) -> Logprobs | None:
    """The log-probabilities of the kept rows, with indices among the kept rows; None if none."""
    rows = np.array(is_kept)
    indices, num_tops = _ints(logprobs.indices), _ints(logprobs.num_tops)
    kept = rows[indices]
    if not kept.any():
        return None
    kept_tops = np.repeat(kept, num_tops)
    new_indices = np.cumsum(rows) - 1
    return Logprobs(
        indices=new_indices[indices[kept]].astype(np.int32).tobytes(),
        chosen=np.frombuffer(logprobs.chosen, np.float32)[kept].tobytes(),
        ranks=_ints(logprobs.ranks)[kept].tobytes(),
        num_tops=num_tops[kept].tobytes(),
        top_ids=_ints(logprobs.top_ids)[kept_tops].tobytes(),
        tops=np.frombuffer(logprobs.tops, np.float32)[kept_tops].tobytes(),
    )


def _ints(packed: bytes) -> np.ndarray:
    return np.frombuffer(packed, np.int32)


def _num_counted(submit: Submit) -> int:
    """The tokens of a sequence that count towards the longest possible one.

    A prompt that is only scored may fill it: the one output token is never fed.
    """
    num_prompt_tokens = len(submit.prompt_token_ids) // array("i").itemsize
    only_scores = submit.max_tokens == 1 and submit.sampling.num_prompt_logprobs >= 0
    return num_prompt_tokens + (0 if only_scores else submit.max_tokens)


def _longest_sequence(wanted: int | None, stage: StageReady, kv_tokens: int) -> int:
    """The longest prompt + output: the setting, or the limit of the model and the KV cache."""
    if wanted is None:
        return min(stage.max_model_len, kv_tokens)
    if wanted > stage.max_model_len:
        reason = f" ({stage.max_model_len_reason})" if stage.max_model_len_reason else ""
        raise ImpossibleSettingsError(
            f"max_model_len {wanted} is more than the model's own limit of {stage.max_model_len} "
            f"tokens{reason}; lower max_model_len"
        )
    if wanted > kv_tokens:
        raise ImpossibleSettingsError(
            f"max_model_len {wanted} does not fit the KV cache of {kv_tokens} tokens; "
            "raise kv_cache_memory_bytes or gpu_memory_utilization, or lower max_model_len"
        )
    return wanted
