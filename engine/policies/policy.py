"""The interface of scheduling policies."""

from typing import Protocol

from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from wire.messages import Phase


class Policy(Protocol):
    """Decides what the next micro-batch contains.

    A policy admits and preempts sequences through the pool. Phase switches and work
    stealing are counted in `pool.counters`.
    """

    phase: Phase

    @property
    def max_in_flight(self) -> int:
        """The number of micro-batches that may be in flight now."""
        ...

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:
        """The micro-batch to launch at `now` (seconds), or None to wait for the next event.

        The sequence of every row is admitted, and its block table has blocks for the row's tokens.
        None is not allowed if a sequence is open and no step is in flight: this is a deadlock.
        """
        ...
