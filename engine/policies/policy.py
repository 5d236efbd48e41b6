"""What a policy is: it decides the next micro-batch."""

from typing import Protocol

from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from wire.messages import Phase


class Policy(Protocol):
    """Decides what runs next. It may admit and pre-empt through the pool while it builds.

    It counts switches and steals in the pool's counters.
    """

    phase: Phase

    @property
    def max_in_flight(self) -> int:
        """Micro-batches that may be in flight at present."""
        ...

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:
        """The rows to launch now, or None to wait for a step to return or a request to come.

        Every row's sequence is admitted and its block table holds the row's tokens. With nothing in
        flight and any sequence open, an answer of None would be a deadlock and is never given.
        """
        ...
