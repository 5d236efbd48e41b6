"""Prefill rows: prompts in order of admission, cut to a number of tokens, chunks back to back."""

from collections.abc import Callable

from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State


class PrefillCursor:
    """Feeds prompts one after the other; the last one of a micro-batch perhaps in part.

    The rest of a prompt leads the next micro-batch, also while its first chunks are in flight: the
    stages run steps in order, so the keys and values it needs are there in time.
    """

    def __init__(self) -> None:
        self._half_fed: Sequence | None = None

    @property
    def half_fed(self) -> Sequence | None:
        """The prompt of which a part is still to be fed."""
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
        """Add up to `num_tokens` tokens of prompts; their number.

        `next_admitted` names the waiting sequence to go on with, None for nobody.
        """
        room = num_tokens
        if self.half_fed is not None and room > 0:
            room -= self._feed(batch, self.half_fed, room)
        while room > 0 and self.half_fed is None:
            sequence = next_admitted()
            if sequence is None or not pool.admit(sequence):
                break
            room -= self._feed(batch, sequence, room)
        return num_tokens - room

    def _feed(self, batch: MicroBatch, sequence: Sequence, limit: int) -> int:
        num_tokens = batch.add_prefill(sequence, limit)
        self._half_fed = sequence if num_tokens < sequence.num_unplanned else None
        return num_tokens
