"""A histogram that a process counts and sends: `Histogram` counts, `HistogramFigures` travels."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

import msgspec

# Seconds of a part of a request: waiting, prefill, decode.
REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1000)
# Seconds between two tokens of a sequence.
TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10)
# Seconds that a phase switch costs.
SWITCH_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class HistogramFigures(msgspec.Struct, frozen=True, array_like=True):
    """The state of a histogram.

    `counts[i]` values were at most `bounds[i]` and above the bound before it; the last count is of
    values above all bounds. `total` is the sum of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float = 0.0


class Histogram:
    """Counts values by ascending upper `bounds`, as Prometheus does."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Count many values, of which most are equal: 256 take 10 us."""
        for value, number in Counter(values).items():
            self._counts[bisect_left(self._bounds, value)] += number
            self._total += value * number

    def figures(self) -> HistogramFigures:
        """The counts so far."""
        return HistogramFigures(self._bounds, tuple(self._counts), self._total)
