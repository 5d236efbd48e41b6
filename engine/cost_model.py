"""The cost model: seconds of one stage for a step of so many tokens over so much resident KV.

    seconds = linear(tokens fed) + KV tokens read * seconds per KV token

`linear` is the measured staircase of a forward (GPU tiles make it jump), interpolated between its
points and carried on at its average slope beyond the last. A row reads the KV before its first new
token: a decode row all of its context, a chunk of a prompt the chunks before it. A model without
the second term is wrong: at 13B on L20 with 170k tokens resident it is as long as the weights'.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from engine.messages import StageCosts

# Up to here a step's seconds are looked up, beyond they are computed.
TABLE_TOKENS = 8192
# Two steps whose seconds differ by less stand on one stair.
_STAIR_TOLERANCE = 0.02


class CostModel:
    """Seconds of the slowest stage, which sets the pipeline's pace."""

    def __init__(
        self, num_tokens: Sequence[int], seconds: Sequence[float], kv_s_per_token: float = 0.0
    ) -> None:
        assert len(num_tokens) == len(seconds) > 0
        self._num_tokens, self._seconds = list(num_tokens), list(seconds)
        self.kv_s_per_token = kv_s_per_token
        self._table = [self._interpolate(n) for n in range(TABLE_TOKENS + 1)]
        self._array = np.array(self._table)
        # What is measured has noise: never fewer seconds for more tokens, when looking for stairs.
        self._rising = list(accumulate(self._table, max))

    @classmethod
    def of_stages(cls, stages: Sequence[StageCosts]) -> "CostModel":
        """The slowest of the measured stages at each number of tokens; without one, 1 s a step."""
        models = [cls(s.num_tokens, s.seconds, s.kv_s_per_token) for s in stages if s.num_tokens]
        if not models:
            return cls([1], [1.0])
        grid = sorted({n for model in models for n in model._num_tokens})
        slowest = [max(model.linear_s(n) for model in models) for n in grid]
        return cls(grid, slowest, max(model.kv_s_per_token for model in models))

    def linear_s(self, num_tokens: int) -> float:
        """Seconds for the tokens fed, whatever their context."""
        if num_tokens <= TABLE_TOKENS:
            return self._table[num_tokens]
        return self._interpolate(num_tokens)

    def linear_many(self, num_tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """`linear_s` of each, up to `TABLE_TOKENS` tokens."""
        return self._array[np.minimum(num_tokens, TABLE_TOKENS)]

    def stage_s(self, num_tokens: int, kv_tokens: int = 0) -> float:
        """Seconds of a step that feeds `num_tokens` and reads `kv_tokens` of resident KV."""
        return self.linear_s(num_tokens) + kv_tokens * self.kv_s_per_token

    def edge(self, num_tokens: int) -> int:
        """The greatest number of tokens that costs hardly more: the end of the stair."""
        limit = self.linear_s(num_tokens) * (1 + _STAIR_TOLERANCE)
        last = min(bisect_right(self._rising, limit) - 1, TABLE_TOKENS)
        return max(num_tokens, last)

    @cached_property
    def edges(self) -> list[int]:
        """The ends of all stairs up to `TABLE_TOKENS`, ascending."""
        edges = [self.edge(1)]
        while edges[-1] < TABLE_TOKENS:
            edges.append(self.edge(edges[-1] + 1))
        return edges

    def _interpolate(self, num_tokens: int) -> float:
        xs, ys = self._num_tokens, self._seconds
        if num_tokens <= xs[0]:
            return ys[0] if num_tokens > 0 else 0.0
        if num_tokens >= xs[-1]:
            return ys[-1] * num_tokens / xs[-1] if len(xs) > 1 else ys[-1]
        right = bisect_right(xs, num_tokens)
        x0, x1, y0, y1 = xs[right - 1], xs[right], ys[right - 1], ys[right]
        return y0 + (y1 - y0) * (num_tokens - x0) / (x1 - x0)
