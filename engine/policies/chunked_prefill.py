"""Chunked prefill: fills micro-batches with prompts in order of admission, in chunks.

No chunk has a single token, and none is left over: attention sums a row of one token in another
order than a longer one, so that the KV of a prompt would depend on where it was cut, and an answer
on the other rows of its steps (batch invariance, `workers.model.batch_invariance`).
"""

from collections.abc import Callable

from configs.schema.scheduler import SHORTEST_LIMIT
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State


def chunk_len(num_tokens: int, limit: int) -> int:
    """The tokens of the next chunk of a prompt of which `num_tokens` are left, at most `limit`."""
    leaves_one = num_tokens == limit + 1 and limit >= SHORTEST_LIMIT
    return min(num_tokens, limit - leaves_one)


class PrefillCursor:
    """Feeds prompts one after the other; the last prompt of a micro-batch may be fed in part.

    The rest of that prompt comes first in the next micro-batch, even while its first chunks are in
    flight: the stages run steps in order, so the KV of the first chunks is stored in time.
    """

    def __init__(self) -> None:
        self._half_fed: Sequence | None = None

    @property
    def half_fed(self) -> Sequence | None:
        """The partly fed prompt, if there is one."""
        if self._half_fed is not None and self._half_fed.state is State.FINISHED:
            self._half_fed = None
        return self._half_fed

    def fill(
        self,
        pool: Pool,
        batch: MicroBatch,
        num_tokens: int,
        next_admitted: Callable[[], Sequence | None],
    ) -> int:
        """Add up to `num_tokens` tokens of prompts; returns how many were added.

        `next_admitted` returns the next waiting sequence to admit, or None to stop. A step that has
        rows already gets no more if fewer than `SHORTEST_LIMIT` tokens are to be added.
        """
        left = num_tokens
        if self.half_fed is not None and left >= _least(batch):
            left -= self._feed(pool, batch, self.half_fed, left)
        while left >= _least(batch) and self.half_fed is None:
            sequence = next_admitted()
            if sequence is None or not pool.admit(sequence):
                break
            left -= self._feed(pool, batch, sequence, left)
        return num_tokens - left

    def _feed(self, pool: Pool, batch: MicroBatch, sequence: Sequence, limit: int) -> int:
        num_tokens = pool.feed(batch, sequence, chunk_len(sequence.num_unplanned, limit))
        self._half_fed = sequence if num_tokens < sequence.num_unplanned else None
        return num_tokens


def _least(batch: MicroBatch) -> int:
    return SHORTEST_LIMIT if batch.sequences else 1


def first_fitting(pool: Pool, max_live: int) -> Sequence | None:
    """The next waiting sequence, if the blocks for its tokens are free now; otherwise None.

    1 % of the blocks is kept for sequences that grow (vLLM's watermark). If no sequence is live,
    the next one is always returned: the scheduler checked at `Submit` that it fits by itself.
    """
    sequence, ledger = pool.first_waiting(), pool.ledger
    if sequence is None or not pool.num_live:
        return sequence
    spare = ledger.num_free - ledger.num_blocks // 100
    fits = pool.blocks_to_admit(sequence) <= spare
    return sequence if fits and pool.num_live < max_live else None
