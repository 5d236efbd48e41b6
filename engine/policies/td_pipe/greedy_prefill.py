"""Greedy prefill: decides when a prefill phase ends (TD-Pipe, section 3.3).

KV use is simulated at a list of future points, p decode steps ahead: a sequence of length L with r
predicted remaining tokens holds ceil((L + p) / block_size) blocks at every p <= r and none later.
The prefill phase continues while the peak over p stays within the capacity.
"""

import numpy as np

from engine.state.pool import Pool
from engine.state.sequence import Sequence

FUTURE_POINTS = (5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Decode steps ahead at which KV use is simulated (from the paper's code)."""
_POINTS = np.array(FUTURE_POINTS)


class FutureUse:
    """The simulated number of blocks of the admitted sequences at each future point."""

    def __init__(self, capacity_blocks: float, block_size: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._block_size = block_size
        self._use = [0] * len(FUTURE_POINTS)

    @classmethod
    def of_live(cls, pool: Pool, occupancy: float) -> "FutureUse":
        """The use of the live sequences; the capacity is `occupancy` (0..1) of all blocks."""
        ledger = pool.ledger
        use = cls(occupancy * ledger.num_blocks, ledger.block_size)
        live = [(len(s.token_ids), s.predicted_remaining, s.num_shared) for s in pool.live.values()]
        lengths, remaining, shared = np.array(live, dtype=np.int64).reshape(-1, 3).T[:, :, None]
        blocks = -(-(lengths + _POINTS) // ledger.block_size) - shared
        last = np.maximum(remaining, FUTURE_POINTS[0])
        held = np.where(last >= _POINTS, blocks, 0).sum(axis=0) + pool.num_inherited
        use._use = held.tolist()
        return use

    def admits(self, sequence: Sequence, num_shared: int = 0) -> bool:
        """Whether the peak stays within the capacity with this sequence.

        Others that count already hold `num_shared` of its blocks.
        """
        more = self._blocks(sequence, num_shared)
        return all(u + m <= self._capacity_blocks for u, m in zip(self._use, more, strict=True))

    def add(self, sequence: Sequence, num_shared: int = 0) -> None:
        """Add a sequence with its current and its predicted tokens."""
        more = self._blocks(sequence, num_shared)
        self._use = [u + m for u, m in zip(self._use, more, strict=True)]

    def take(self, sequence: Sequence, num_shared: int = 0) -> bool:
        """Add the sequence if it fits; returns whether it does."""
        if not self.admits(sequence, num_shared):
            return False
        self.add(sequence, num_shared)
        return True

    def _blocks(self, sequence: Sequence, num_shared: int) -> list[int]:
        # A sequence that is nearly complete still holds its blocks at the first point.
        last = max(sequence.predicted_remaining, FUTURE_POINTS[0])
        length, size = len(sequence.token_ids), self._block_size
        return [
            -(-(length + point) // size) - num_shared if point <= last else 0
            for point in FUTURE_POINTS
        ]
