"""The spread of a figure: mean and percentiles."""

from collections.abc import Iterable, Sequence

import numpy as np

PERCENTILES: tuple[float, ...] = (50, 90, 99)


def spread(
    values: Iterable[float | None], percentiles: Sequence[float] = PERCENTILES
) -> dict[str, float] | None:
    """Return mean and percentiles (linear interpolation), ignoring None; None without values."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return None
    figures = {"mean": float(known.mean())}
    for percent, value in zip(percentiles, np.percentile(known, percentiles), strict=True):
        figures[f"p{percent:g}"] = float(value)
    return figures
