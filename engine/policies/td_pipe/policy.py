"""Policy td-pipe: long prefill and long decode phases on the same stages (TD-Pipe, section 3).

This module combines the three ideas in `greedy_prefill`, `work_stealing` and `intensity`. Each can
be switched off, for the ablations of the paper.
"""

from collections.abc import Iterator
from itertools import islice, tee

from configs.schema.scheduler import SchedulerConfig
from engine.costs.cost_model import CostModel
from engine.policies.chunked_prefill import chunk_len
from engine.policies.decode_rows import add_decodes
from engine.policies.policy import Policy
from engine.policies.prompt_chunks import PromptChunks
from engine.policies.td_pipe.greedy_prefill import FutureUse
from engine.policies.td_pipe.intensity import spatial_intensity, temporal_intensity
from engine.policies.td_pipe.work_stealing import average_rows, members_and_withheld, reassign
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State
from wire.messages import Phase


class TdPipe(Policy):
    """Prefill until the simulated KV use is full, then decode in S equal micro-batches."""

    def __init__(self, config: SchedulerConfig, num_stages: int, cost: CostModel) -> None:
        self.phase: Phase = "prefill"
        self._config = config
        self._num_stages = num_stages
        self._cost = cost
        self._use: FutureUse | None = None
        self._chunks = PromptChunks(config.max_num_batched_tokens, num_stages, cost)
        self._half_fed: Sequence | None = None
        self._next_micro_batch_index = 0
        self._decode_launches = 0
        self._decode_began_with = 0
        self._finished_before = 0

    @property
    def max_in_flight(self) -> int:
        """One per stage, or `prefill_ahead` per stage for prefills, which are independent."""
        ahead = self._config.td_pipe.prefill_ahead if self.phase == "prefill" else 1
        return ahead * self._num_stages

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:
        """See `Policy.next_micro_batch`."""
        if self.phase == "decode" and self._is_decode_over(pool, now):
            self._begin_prefill(pool)
        if self.phase == "prefill":
            batch = self._prefill(pool)
            if batch is None and not pool.ready:
                return None  # nothing to decode yet: prompts that arrive meanwhile join this phase
            if batch is None:
                self._begin_decode(pool)
        if self.phase == "decode":
            batch = self._decode(pool)
        return batch

    def _begin_prefill(self, pool: Pool) -> None:
        self.phase = "prefill"
        pool.counters.switches += 1
        self._use = None

    def _begin_decode(self, pool: Pool) -> None:
        self.phase = "decode"
        pool.counters.switches += 1
        self._decode_launches = 0
        self._decode_began_with = pool.num_live
        self._finished_before = pool.num_finished
        for i, sequence in enumerate(pool.live.values()):
            sequence.micro_batch_index = i % self._num_stages

    # --- prefill phase ----------------------------------------------------------------------

    def _prefill(self, pool: Pool) -> MicroBatch | None:
        """Fill a micro-batch with whole prompts; a long prompt is fed by itself, in chunks.

        As in the paper's code, a micro-batch is full when count x longest prompt reaches
        `prefill_batch_tokens`. The chunks of a prompt depend only on its own length, so that its
        KV, and therefore every token, does not depend on the other rows (batch invariance).
        """
        batch, budget = MicroBatch(), self._config.max_num_batched_tokens
        longest = 0
        if self._half_fed is not None and self._half_fed.state is not State.FINISHED:
            self._feed(pool, batch, self._half_fed)
            return batch
        self._half_fed = None
        while longest * len(batch.sequences) < self._config.td_pipe.prefill_batch_tokens:
            sequence = pool.first_waiting()
            if sequence is None:
                break
            num_tokens = min(sequence.num_unplanned, budget)
            if batch.sequences and batch.total_tokens + num_tokens > budget:
                break
            if not self._admits(pool, sequence) or not pool.admit(sequence):
                break
            if self._use is not None:
                self._use.add(sequence, sequence.num_shared)
            longest = max(longest, num_tokens)
            self._feed(pool, batch, sequence)
            if self._half_fed is not None:
                break
        return batch if batch.sequences else None

    def _feed(self, pool: Pool, batch: MicroBatch, sequence: Sequence) -> None:
        limit = self._chunks.size(len(sequence.token_ids))
        num_tokens = pool.feed(batch, sequence, chunk_len(sequence.num_unplanned, limit))
        self._half_fed = sequence if num_tokens < sequence.num_unplanned else None

    def _admits(self, pool: Pool, sequence: Sequence) -> bool:
        """Whether one more sequence fits, now and later.

        If no sequence is live, it is always admitted: `Submit` checked that it fits by itself.
        """
        if not pool.num_live:
            self._use = None  # all sequences that it counted have ended
            return True
        if not self._fits_now(pool, sequence):
            return False
        if not self._config.td_pipe.greedy_prefill:
            return (
                pool.ledger.num_used
                < self._config.td_pipe.prefill_occupancy * pool.ledger.num_blocks
            )
        if self._use is None:
            self._use = FutureUse.of_live(pool, self._config.td_pipe.kv_occupancy)
        return self._use.admits(sequence, *pool.prefix_cache.shares([sequence]))

    def _fits_now(self, pool: Pool, sequence: Sequence) -> bool:
        return (
            pool.num_live < self._config.max_live(self._num_stages)
            and pool.blocks_to_admit(sequence) <= pool.ledger.num_free
        )

    # --- decode phase -----------------------------------------------------------------------

    def _decode(self, pool: Pool) -> MicroBatch | None:
        """Return the next of the S micro-batches that has a row, or None."""
        for _ in range(self._num_stages):
            micro_batch_index = self._next_micro_batch_index
            self._next_micro_batch_index = (micro_batch_index + 1) % self._num_stages
            batch = self._decode_micro_batch(pool, micro_batch_index)
            if batch.sequences:
                self._decode_launches += 1
                return batch
        return None

    def _decode_micro_batch(self, pool: Pool, micro_batch_index: int) -> MicroBatch:
        """The ready members of a micro-batch; with work stealing, up to the average size."""
        members, withheld = members_and_withheld(pool.ready.values(), micro_batch_index)
        num_rows = len(members)
        if self._config.td_pipe.work_stealing:
            num_rows = average_rows(num_rows + len(withheld), pool.num_live, self._num_stages)
        batch = MicroBatch()
        add_decodes(pool, batch, members + withheld, num_rows)
        pool.counters.steals += reassign(members, batch.sequences, num_rows, micro_batch_index)
        return batch

    # --- decode -> prefill ------------------------------------------------------------------

    def _is_decode_over(self, pool: Pool, now: float) -> bool:
        """Whether to switch to prefill; checked once per S launches, as in the paper's code."""
        first = pool.waiting.first()
        if first is None:
            return False
        if not pool.num_live:
            return True
        if self._decode_launches % self._num_stages:
            return False
        if not self._fits_now(pool, first):
            return False  # a prefill phase would admit nothing
        if pool.waiting.online_wait_s(now) >= self._config.max_prefill_wait:
            return self._new_use(pool).admits(first, *pool.prefix_cache.shares([first]))
        if not self._config.td_pipe.intensity:
            finished = pool.num_finished - self._finished_before
            return finished >= self._config.td_pipe.finish_ratio * self._decode_began_with
        rows = pool.num_live / self._num_stages
        spatial = spatial_intensity(
            rows,
            self._cost,
            self._config.td_pipe.saturating_rows,
            self._config.td_pipe.saturated_rows,
        )
        if spatial >= 1.0:
            return False
        decode_s = self._cost.linear_s(max(1, round(rows)))
        return spatial < temporal_intensity(self._next_prefills_s(pool), decode_s)

    def _next_prefills_s(self, pool: Pool) -> Iterator[float]:
        """Yield the seconds of each prefill that would be admitted if the phase began now."""
        use, free = self._new_use(pool), pool.ledger.num_free
        max_more = self._config.max_live(self._num_stages) - pool.num_live
        candidates, others = tee(islice(pool.waiting, max_more))
        for sequence, shared in zip(candidates, pool.prefix_cache.shares(others), strict=True):
            free -= pool.ledger.blocks_for(len(sequence.token_ids)) - shared
            if free < 0 or not use.take(sequence, shared):
                return
            yield self._cost.linear_s(sequence.num_unplanned)

    def _new_use(self, pool: Pool) -> FutureUse:
        return FutureUse.of_live(pool, self._config.td_pipe.kv_occupancy)
