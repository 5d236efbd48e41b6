"""Policy separate: prefill-first separate batching in S virtual engines (vLLM's pipeline
parallelism at the time of the paper, its baseline PP+SB).

Each virtual engine has one micro-batch in flight: a prefill of waiting prompts as long as any fits,
otherwise a decode of all its own sequences. Prompts go to the one with the fewest sequences. KV
blocks are common to all; in vLLM 0.5 each virtual engine has a fixed share, which is a little
worse.
"""

from collections import deque

from configs.schema import AdmissionConfig
from engine.policies.chunked_prefill import PrefillCursor
from engine.policies.decode_rows import add_decodes
from engine.policies.policy import Policy
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence
from wire.messages import Phase


class Separate(Policy):
    """S virtual engines, prefill first."""

    def __init__(self, config: AdmissionConfig, num_stages: int) -> None:
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
        """Whole prompts up to the budget; one that exceeds it alone, in chunks."""
        batch, budget = MicroBatch(), self._config.max_num_batched_tokens
        share = -(-(pool.num_live + len(pool.waiting)) // len(self._cursors))
        others = sum([sequence.micro_batch_index == engine for sequence in pool.live.values()])

        def next_admitted() -> Sequence | None:
            sequence = first_with_room(pool, self._max_live)
            if (
                sequence is None
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


def first_with_room(pool: Pool, max_live: int) -> Sequence | None:
    """The next waiting sequence, if there is room for its tokens now.

    1 % of the blocks is kept for those that grow (vLLM's watermark). One alone is let in: `Submit`
    checked that it fits.
    """
    sequence, ledger = pool.waiting.first(), pool.ledger
    if sequence is None or not pool.num_live:
        return sequence
    spare = ledger.num_free - ledger.num_blocks // 100
    fits = ledger.blocks_for(len(sequence.token_ids)) <= spare
    return sequence if fits and pool.num_live < max_live else None
