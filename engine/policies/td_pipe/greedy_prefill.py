"""Greedy prefill: how long a prefill phase may go on (TD-Pipe, section 3.3).

At a list of future points, p decode steps ahead, KV use is simulated: a sequence of length L that
is predicted to go on for r tokens holds ceil((L + p) / block) blocks at every p <= r and none
after. Prefill goes on while the peak over p stays within the capacity.
"""

import numpy as np

from engine.state.pool import Pool
from engine.state.sequence import Sequence

FUTURE_POINTS = (5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Decode steps ahead at which use is simulated (the paper's code)."""
_POINTS = np.array(FUTURE_POINTS)


class FutureUse:
    """Simulated block use of the admitted sequences at each future point."""

    def __init__(self, capacity_blocks: float, block_size: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._block_size = block_size
        self._use = [0] * len(FUTURE_POINTS)

    @classmethod
    def of_live(cls, pool: Pool, occupancy: float) -> "FutureUse":
        """The live sequences' use, within the part `occupancy` of all blocks."""
        ledger = pool.ledger
        use = cls(occupancy * ledger.num_blocks, ledger.block_size)
        live = [(len(s.token_ids), s.predicted_remaining) for s in pool.live.values()]
        lengths, remaining = np.array(live, dtype=np.int64).reshape(-1, 2).T[:, :, None]
        blocks = -(-(lengths + _POINTS) // ledger.block_size)
        last = np.maximum(remaining, FUTURE_POINTS[0])
        use._use = np.where(last >= _POINTS, blocks, 0).sum(axis=0).tolist()
        return use

    def admits(self, sequence: Sequence) -> bool:
        """Whether the peak stays within the capacity with one more sequence."""
        more = self._blocks(len(sequence.token_ids), sequence.predicted_remaining)
        return all(u + m <= self._capacity_blocks for u, m in zip(self._use, more, strict=True))

    def add(self, sequence: Sequence) -> None:
        """Count in a sequence with its tokens so far and those it is predicted to generate."""
        more = self._blocks(len(sequence.token_ids), sequence.predicted_remaining)
        self._use = [u + m for u, m in zip(self._use, more, strict=True)]

    def take(self, sequence: Sequence) -> bool:
        """Count the sequence in if it is admitted; whether it is."""
        if not self.admits(sequence):
            return False
        self.add(sequence)
        return True

    def _blocks(self, length: int, remaining: int) -> list[int]:
        # What is nearly done still holds its blocks at the first point: never counted as nothing.
        last = max(remaining, FUTURE_POINTS[0])
        size = self._block_size
        return [-(-(length + point) // size) if point <= last else 0 for point in FUTURE_POINTS]
