"""The cost model: estimates the seconds that a step takes on one stage.

    seconds = linear(tokens fed) + a * KV tokens read + b * rows + c * pairs

`linear` is the measured time of a forward pass. It is a staircase, with jumps at the tile sizes of
GPU kernels. It is interpolated between the measured points; beyond the last point, it is
proportional to the tokens. A row reads the KV before its first new token: a decode row reads its
whole context, a chunk of a prompt reads the earlier chunks. This term cannot be left out: with 170k
resident tokens, a 13B model on L20 spends as long on reading KV as on reading weights. Each row has
a cost on the last stage, which samples, and on any stage if attention processes rows one by one, as
on a CPU. Pairs count the attention within a prompt, see `wire.messages.StageCosts`.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wire.messages import StageCosts

# The seconds of steps up to this size in tokens are in a table; larger steps are computed.
TABLE_TOKENS = 8192
# Step sizes are on the same stair if their seconds differ by less than this fraction.
_STAIR_TOLERANCE = 0.02
# The fit to noisy measurements may leave nothing of small steps, and rates are divided by seconds.
_SHORTEST_S = 1e-6

Floats = NDArray[np.float64]


class StepSize(NamedTuple):
    """The figures of a step that determine its seconds, summed over its rows."""

    num_tokens: int
    num_rows: int = 0
    kv_tokens: int = 0
    num_pairs: float = 0.0


class CostModel:
    """The step times of one stage, or of the slowest stage, which limits the pipeline.

    `num_tokens` (ascending) and `seconds` are the points of the staircase.
    """

    def __init__(
        self,
        num_tokens: Sequence[int],
        seconds: Sequence[float],
        kv_s_per_token: float = 0.0,
        row_s: float = 0.0,
        pair_s: float = 0.0,
    ) -> None:
        assert len(num_tokens) == len(seconds) > 0
        self.kv_s_per_token, self.row_s, self.pair_s = kv_s_per_token, row_s, pair_s
        self._xs = np.array(num_tokens, float)
        self._ys = np.maximum(np.array(seconds, float), _SHORTEST_S)
        self._array = self._interpolate(np.arange(TABLE_TOKENS + 1))
        self._table: list[float] = self._array.tolist()
        # Measurements are noisy: to find stairs, more tokens are never assumed to be faster.
        self._rising: list[float] = np.maximum.accumulate(self._array).tolist()

    @classmethod
    def of(cls, costs: StageCosts) -> "CostModel":
        """The model of a stage from its measured costs, which must not be empty."""
        return cls(costs.num_tokens, costs.seconds, costs.kv_s_per_token, costs.row_s, costs.pair_s)

    @classmethod
    def slowest(cls, models: Sequence["CostModel"]) -> "CostModel":
        """The slowest stage at each number of tokens; 1 s per step if `models` is empty."""
        if not models:
            return cls([1], [1.0])
        grid = sorted({int(n) for model in models for n in model._xs})
        return cls(
            grid,
            [max(model.linear_s(n) for model in models) for n in grid],
            max(model.kv_s_per_token for model in models),
            max(model.row_s for model in models),
            max(model.pair_s for model in models),
        )

    def scaled(self, points: Floats, factors: Floats) -> "CostModel":
        """The model with its seconds multiplied by `factors` at `points` (tokens, ascending).

        Between the points, factors are interpolated over the logarithm of the tokens. Terms that do
        not depend on the fed tokens are multiplied by the mean factor.
        """
        between = points[(points > self._xs[0]) & (points < self._xs[-1])]
        xs = np.union1d(self._xs, between)
        own = np.interp(np.log(xs), np.log(points), factors)
        mean = float(factors.mean())
        return CostModel(
            xs.astype(int).tolist(),
            (np.interp(xs, self._xs, self._ys) * own).tolist(),
            self.kv_s_per_token * mean,
            self.row_s * mean,
            self.pair_s * mean,
        )

    def become(self, other: "CostModel") -> None:
        """Copy the figures of another model into this one, so that all its holders use them."""
        self.__dict__.clear()  # including cached properties
        self.__dict__.update({k: v for k, v in other.__dict__.items() if k != "edges"})

    def linear_s(self, num_tokens: int) -> float:
        """Seconds for the tokens fed, without the KV read, the rows and the pairs."""
        if num_tokens <= TABLE_TOKENS:
            return self._table[num_tokens]
        return float(self._interpolate(np.array([num_tokens]))[0])

    def linear_many(self, num_tokens: NDArray[np.int64]) -> Floats:
        """`linear_s` of each number of tokens, clipped to `TABLE_TOKENS`; same shape."""
        return self._array[np.minimum(num_tokens, TABLE_TOKENS)]

    def decode_s(self, num_rows: int) -> float:
        """Seconds of a step of decode rows, without reading their KV."""
        return self.linear_s(num_rows) + num_rows * self.row_s

    def step_s(self, size: StepSize) -> float:
        """Seconds of a step."""
        return (
            self.linear_s(size.num_tokens)
            + size.kv_tokens * self.kv_s_per_token
            + size.num_rows * self.row_s
            + size.num_pairs * self.pair_s
        )

    def edge(self, num_tokens: int) -> int:
        """The end of the stair: the most tokens that cost at most 2 % more than `num_tokens`."""
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

    def _interpolate(self, num_tokens: NDArray[np.int64]) -> Floats:
        xs, ys = self._xs, self._ys
        seconds: Floats = np.interp(num_tokens, xs, ys)
        if len(xs) > 1:
            seconds = np.where(num_tokens > xs[-1], ys[-1] * num_tokens / xs[-1], seconds)
        seconds[num_tokens == 0] = 0.0
        return seconds
