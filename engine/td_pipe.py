"""Policy td-pipe: long prefill phases, long decode phases, on the same stages (TD-Pipe, section 3).

Plain as yet: every output length is predicted to be the same, a decode phase ends when a part of
its sequences has finished or its time is up, and batches are balanced by taking an equal share of
what is ready.
"""

from configs.schema import SchedulerConfig
from engine.batches import MicroBatch, Row
from engine.kv_plan import KvPlan
from engine.messages import Phase
from engine.policy import Policy
from engine.pool import Pool
from engine.sequence import Sequence, State


class TdPipe(Policy):
    """Prefill until the KV plan is full, then decode in `num_stages` balanced micro-batches."""

    def __init__(self, config: SchedulerConfig, num_stages: int) -> None:
        self.phase: Phase = "prefill"
        self._config = config
        self._num_stages = num_stages
        self._plan: KvPlan | None = None
        self._half_fed: Sequence | None = None
        self._decode_began_at = 0.0
        self._decode_began_with = 0
        self._finished_before = 0
        self._decode_launches = 0

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:
        """See `Policy.next_micro_batch`."""
        if self.phase == "decode" and self._should_prefill(pool, now):
            self._begin_prefill(pool)
        if self.phase == "prefill":
            rows = self._prefill_rows(pool)
            if rows:
                return MicroBatch("prefill", rows)
            if not pool.ready:
                return None  # nothing to decode yet: what comes meanwhile joins this phase
            self._begin_decode(pool, now)
        rows = self._decode_rows(pool)
        return MicroBatch("decode", rows) if rows else None

    def _begin_prefill(self, pool: Pool) -> None:
        self.phase = "prefill"
        pool.counters.switches += 1
        self._plan = None

    def _begin_decode(self, pool: Pool, now: float) -> None:
        self.phase = "decode"
        pool.counters.switches += 1
        self._decode_began_at = now
        self._decode_began_with = pool.num_live
        self._finished_before = pool.num_finished
        self._decode_launches = 0

    def _should_prefill(self, pool: Pool, now: float) -> bool:
        """The decode phase is over; asked once a round of S launches, as in the paper's code."""
        if not pool.waiting:
            return False
        if not pool.num_live:
            return True
        if self._decode_launches % self._num_stages:
            return False
        finished = pool.num_finished - self._finished_before
        is_due = (
            finished >= self._config.finish_ratio * self._decode_began_with
            or now - self._decode_began_at >= self._config.max_prefill_wait
        )
        return is_due and self._admits(
            pool, next(iter(pool.waiting.values())), self._new_plan(pool)
        )

    def _prefill_rows(self, pool: Pool) -> list[Row]:
        """Whole prompts up to the token budget; a longer prompt alone, in chunks of the budget.

        Where a prompt is cut depends on its own length only: its KV, and with it every token, is
        then the same in any company.
        """
        budget = self._config.max_num_batched_tokens
        rows: list[Row] = []
        if not pool.num_live:
            self._plan = None  # all that it counted has ended
        if self._half_fed is not None and self._half_fed.state is State.FINISHED:
            self._half_fed = None
        if self._half_fed is not None:
            rows.append(self._chunk(self._half_fed))
        while pool.waiting and not self._half_fed:
            sequence = next(iter(pool.waiting.values()))
            num_tokens = min(sequence.num_unplanned, budget)
            if num_tokens > budget - sum(row.num_tokens for row in rows):
                break
            self._plan = self._plan or self._new_plan(pool)
            if not self._admits(pool, sequence, self._plan) or not pool.admit(sequence):
                break
            self._plan.add(len(sequence.token_ids), self._predict_remaining(sequence))
            rows.append(self._chunk(sequence))
        return rows

    def _chunk(self, sequence: Sequence) -> Row:
        row = Row.feed(sequence, self._config.max_num_batched_tokens)
        self._half_fed = None if row.samples else sequence
        return row

    def _admits(self, pool: Pool, sequence: Sequence, plan: KvPlan) -> bool:
        """Room for one more, now and later. One alone is let in: `Submit` checked that it fits."""
        if not pool.num_live:
            return True
        length = len(sequence.token_ids)
        return (
            pool.num_live < self._config.max_num_seqs
            and pool.ledger.blocks_for(length) <= pool.ledger.num_free
            and plan.admits(length, self._predict_remaining(sequence))
        )

    def _new_plan(self, pool: Pool) -> KvPlan:
        ledger = pool.ledger
        plan = KvPlan(self._config.kv_occupancy * ledger.num_blocks, ledger.block_size)
        for sequence in pool.live():
            plan.add(len(sequence.token_ids), self._predict_remaining(sequence))
        return plan

    def _predict_remaining(self, sequence: Sequence) -> int:
        length = min(self._config.predicted_output_len, sequence.submit.max_tokens)
        return max(0, length - sequence.num_generated)

    def _decode_rows(self, pool: Pool) -> list[Row]:
        """An equal share of the live sequences, of those ready the longest ready first."""
        share = -(-pool.num_live // self._num_stages)
        rows: list[Row] = []
        for sequence in list(pool.ready.values()):
            if len(rows) == share:
                break
            if sequence.sequence_id in pool.ready and self._make_room(pool, sequence, rows):
                rows.append(Row.feed(sequence, 1))
                is_stolen = sequence.last_decode_step not in (-1, pool.last_returned_step)
                pool.counters.steals += is_stolen
        self._decode_launches += bool(rows)
        return rows

    def _make_room(self, pool: Pool, sequence: Sequence, rows: list[Row]) -> bool:
        """A block for the sequence's next token, by pre-empting the youngest if it must be.

        The oldest sequence is never pre-empted, so that something always goes forward.
        """
        while not pool.ledger.extend(sequence.block_table, len(sequence.token_ids)):
            taken = {row.sequence.sequence_id for row in rows}
            idle = [s for s in pool.ready.values() if s.sequence_id not in taken]
            youngest = max(idle, key=lambda s: (s.arrived_at, s.sequence_id))
            if youngest is sequence and len(idle) == 1:
                return False  # those in flight come back, with blocks or as victims
            pool.preempt(youngest)
            if youngest is sequence:
                return False
        return True
