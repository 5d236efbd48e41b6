"""Length classes of TD-Pipe's predictor (after mu-Serve), with the distribution of each class.

The distribution is that of the training requests in the class. It is kept in addition to the mean,
so that a prediction has a spread.
"""

from dataclasses import dataclass
from typing import Any, Self

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

# Enough to describe the shape of a distribution; more would only repeat the training data.
NUM_QUANTILES = 33
# The paper's class boundaries; the longest 1 % of the outputs are a separate class.
PAPER_PERCENTILES = (25.0, 50.0, 75.0, 99.0)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Distributions of lengths in tokens, one per row of probabilities."""

    means: Floats  # [rows], in tokens
    spreads: Floats  # [rows], standard deviations of the logarithm
    quantiles: Floats  # [rows, NUM_QUANTILES], in tokens, at the levels of `levels()`


class LengthClasses(msgspec.Struct, frozen=True):
    """Length classes in ascending order.

    Class k has the lengths up to `edges[k]`, and the last class has all longer ones.
    """

    edges: tuple[int, ...]  # K - 1 of them
    means: tuple[float, ...]  # K
    quantiles: tuple[tuple[float, ...], ...]  # K x NUM_QUANTILES

    def __post_init__(self) -> None:
        """Raises `ValueError` if the fields are inconsistent."""
        points = np.array([list(row) for row in self.quantiles], dtype=np.float64)
        if len(self.means) != len(self) or points.shape != (len(self), NUM_QUANTILES):
            raise ValueError(f"{len(self.edges)} edges need {len(self)} means and quantiles")
        if any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError("edges must be strictly increasing")
        if min(*self.means, points.min()) <= 0:
            raise ValueError("lengths must be positive")

    def __len__(self) -> int:
        return len(self.edges) + 1

    @classmethod
    def fit(cls, output_lens: ArrayLike, num_classes: int = 5) -> Self:
        """Classes at percentiles of these lengths, without those that would be empty."""
        lens = np.asarray(output_lens, dtype=np.int64)
        # "inverted_cdf": an edge is a length that occurs, so only the last class can be empty.
        cuts = np.percentile(lens, percentiles(num_classes), method="inverted_cdf")
        edges = [int(edge) for edge in np.unique(cuts) if edge < lens.max()]
        members = [lens[np.searchsorted(edges, lens) == k] for k in range(len(edges) + 1)]
        return cls(
            tuple(edges),
            tuple(float(own.mean()) for own in members),
            tuple(tuple(map(float, np.quantile(own, levels()))) for own in members),
        )

    def of(self, output_lens: ArrayLike) -> Ints:
        """The class of each length."""
        return np.searchsorted(self.edges, np.asarray(output_lens)).astype(np.int64)

    def mixture(self, probabilities: ArrayLike) -> Mixture:
        """The mixtures of the classes' distributions, weighted by the rows' probabilities.

        `probabilities` is [rows, K] (or [K], one row); each row adds up to 1.
        """
        weights = np.atleast_2d(np.asarray(probabilities, dtype=np.float64))  # [rows, K]
        points = np.array(self.quantiles)  # [K, NUM_QUANTILES]
        logs = np.log(points)
        first = weights @ logs.mean(axis=1)
        second = weights @ (logs**2).mean(axis=1)
        return Mixture(
            weights @ np.array(self.means),
            np.sqrt(np.maximum(second - first**2, 0.0)),
            _quantiles(weights, points),
        )

    def to_json(self) -> dict[str, Any]:
        """The classes as JSON values."""
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, values: object) -> Self:
        """The inverse of `to_json`. Raises `msgspec.ValidationError` for invalid values."""
        return msgspec.convert(values, cls)


def percentiles(num_classes: int) -> tuple[float, ...]:
    """The percentiles at which classes end.

    For 5 classes those of the paper, otherwise equal parts of the first 99 %.
    """
    if num_classes < 2:
        raise ValueError(f"{num_classes} classes are too few")
    if num_classes == len(PAPER_PERCENTILES) + 1:
        return PAPER_PERCENTILES
    return tuple(float(each) for each in np.linspace(0.0, 99.0, num_classes)[1:])


def levels() -> Floats:
    """The levels of the quantiles: the middles of `NUM_QUANTILES` equal parts.

    With these, the quantiles of a class are a sample of its lengths with equal weights.
    """
    return (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES


def _quantiles(weights: Floats, points: Floats) -> Floats:
    order = np.argsort(points, axis=None, kind="stable")
    ranks = np.cumsum(np.repeat(weights, NUM_QUANTILES, axis=1)[:, order], axis=1)
    ranks /= ranks[:, -1:]
    sorted_points = points.ravel()[order]
    # Rounding may make a rank slightly less than the level that it should be equal to.
    found = np.array([np.searchsorted(row, levels() - 1e-9) for row in ranks])
    return np.asarray(sorted_points[found])
