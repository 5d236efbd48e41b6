"""Policy separate: prefill-first separate batching in S virtual engines.

This is vLLM's pipeline parallelism at the time of the paper, which calls it PP+SB. Each virtual
engine has one micro-batch in flight: a prefill of waiting prompts as long as any prompt
fits, otherwise a decode of all its sequences. A virtual engine takes prompts up to an equal share
of the sequences. All virtual engines share the KV blocks; in vLLM 0.5, each virtual engine has a
fixed part of the blocks, which is a little slower.
"""

from collections import deque

from configs.schema.scheduler import SchedulerConfig
from engine.policies.chunked_prefill import PrefillCursor, first_fitting
from engine.policies.decode_rows import add_decodes
from engine.policies.policy import Policy
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence
from wire.messages import Phase


class Separate(Policy):
    """S virtual engines, prefill first."""

    def __init__(self, config: SchedulerConfig, num_stages: int) -> None:
        self.phase: Phase = "prefill"
        self._config = config
        self._max_live = config.max_live(num_stages)
        self._cursors = [PrefillCursor() for _ in range(num_stages)]
        self._launched: deque[int] = deque()
        self._turn = 0

    @property
    def max_in_flight(self) -> int:
        """See `Policy.max_in_flight`."""
        return len(self._cursors)

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:  # noqa: ARG002
        """See `Policy.next_micro_batch`."""
        while len(self._launched) > pool.num_in_flight:
            self._launched.popleft()
        num_engines = len(self._cursors)
        for engine in ((self._turn + i) % num_engines for i in range(num_engines)):
            if engine in self._launched:
                continue
            batch = self._prefill(pool, engine) or self._decode(pool, engine)
            if batch is not None:
                self._turn = engine + 1
                self._launched.append(engine)
                pool.counters.switches += batch.phase != self.phase
                self.phase = batch.phase
                return batch
        return None

    def _prefill(self, pool: Pool, engine: int) -> MicroBatch | None:
        """Feed whole prompts up to the token budget; only a prompt above the budget is split."""
        batch, budget = MicroBatch(), self._config.max_num_batched_tokens
        share = -(-(pool.num_live + len(pool.waiting)) // len(self._cursors))
        others = sum([sequence.micro_batch_index == engine for sequence in pool.live.values()])

        def next_admitted() -> Sequence | None:
            sequence = first_fitting(pool, self._max_live)
            half_fed = [cursor.half_fed for cursor in self._cursors if cursor.half_fed]
            if (
                sequence is None
                # It is cheaper to wait for the blocks of another virtual engine's prompt.
                or any(pool.prefix_cache.is_computed_by(other, sequence) for other in half_fed)
                or others + len(batch.sequences) >= share
                or min(sequence.num_unplanned, budget) > budget - batch.total_tokens
            ):
                return None
            return sequence

        self._cursors[engine].fill(pool, batch, budget, next_admitted)
        for sequence in batch.sequences:
            sequence.micro_batch_index = engine
        return batch if batch.sequences else None

    def _decode(self, pool: Pool, engine: int) -> MicroBatch | None:
        batch = MicroBatch()
        members = [
            sequence for sequence in pool.ready.values() if sequence.micro_batch_index == engine
        ]
        add_decodes(pool, batch, members, len(members))
        return batch if batch.sequences else None
