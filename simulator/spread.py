"""The spread of a figure: mean and percentiles."""

from collections.abc import Iterable

import numpy as np

PERCENTILES = (50, 90, 99)


def spread(values: Iterable[float | None]) -> dict[str, float] | None:
    """Return mean and percentiles (linear interpolation), ignoring None; None without values."""
    known = np.array([value for value in values if value is not None], dtype=float)
    if not known.size:
        return None
    figures = {"mean": float(known.mean())}
    for percent, value in zip(PERCENTILES, np.percentile(known, PERCENTILES), strict=True):
        figures[f"p{percent}"] = float(value)
    return figures
