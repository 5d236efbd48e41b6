"""The KV plan: will what is admitted now still fit when it has grown?

TD-Pipe section 3.3 simulates KV use at a list of future points, p decode steps ahead: a sequence of
length L that is predicted to go on for r tokens holds ceil((L + p) / block) blocks at every p <= r
and none after. Prefill may go on while the peak over p stays within the capacity.
"""

FUTURE_POINTS = (5, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Decode steps ahead at which use is simulated (the paper's code)."""


class KvPlan:
    """Simulated block use of the admitted sequences at each future point."""

    def __init__(self, capacity_blocks: float, block_size: int) -> None:
        self._capacity_blocks = capacity_blocks
        self._block_size = block_size
        self._use = [0] * len(FUTURE_POINTS)

    def admits(self, length: int, remaining: int) -> bool:
        """Whether the peak stays within the capacity with one more sequence."""
        more = self._blocks(length, remaining)
        return all(u + m <= self._capacity_blocks for u, m in zip(self._use, more, strict=True))

    def add(self, length: int, remaining: int) -> None:
        """Count in a sequence of `length` tokens that will grow by `remaining`."""
        for i, blocks in enumerate(self._blocks(length, remaining)):
            self._use[i] += blocks

    def _blocks(self, length: int, remaining: int) -> list[int]:
        # What is nearly done still holds its blocks at the first point: never counted as nothing.
        last = max(remaining, FUTURE_POINTS[0])
        return [
            -(-(length + point) // self._block_size) if point <= last else 0
            for point in FUTURE_POINTS
        ]
