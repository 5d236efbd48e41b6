"""Length errors: how far real output lengths lie from predicted ones, learnt from what has ended.

Whatever makes the predictions, the ratio real / predicted has some distribution. It is kept as
hazards over bins of its logarithm: of the sequences that reached a bin, the part that ended in it.
Those still running count among the ones that reached a bin, so that early on the short ones, which
end first, do not make all look short (a Kaplan-Meier estimate). A constant prediction thus turns
into the distribution of all lengths by itself.
"""

from math import erf, log

import numpy as np
from numpy.typing import NDArray

_LOW, _HIGH, _WIDTH = -4.0, 4.0, 0.125
_EDGES = np.arange(_LOW, _HIGH, _WIDTH)
NUM_BINS = len(_EDGES)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class LengthErrors:
    """Survival over the logarithm of (generated / predicted).

    Before anything has ended the logarithm is taken as normal with `prior_sigma`; that counts as
    much as `prior_weight` sequences.
    """

    def __init__(self, prior_sigma: float, prior_weight: float) -> None:
        survival = np.array([0.5 - 0.5 * erf(e / prior_sigma / 2**0.5) for e in _EDGES])
        after = np.append(survival[1:], 0.0)
        hazard = 1 - after / np.maximum(survival, 1e-12)
        self._ended = prior_weight * survival * hazard
        self._reached = prior_weight * survival

    def observe(self, output_len: int, predicted_len: int) -> None:
        """A sequence has ended after `output_len` tokens."""
        index = min(NUM_BINS - 1, max(0, int((log(output_len / predicted_len) - _LOW) / _WIDTH)))
        self._ended[index] += 1
        self._reached[: index + 1] += 1

    def survival(self, live_bins: Ints) -> Floats:
        """Probability to reach each bin; `live_bins` are where the live sequences are now."""
        counts = np.bincount(live_bins, minlength=NUM_BINS)
        # A live sequence has reached the bins up to its own, and says nothing of that one's hazard.
        passed = np.cumsum(counts[::-1])[::-1] - counts
        hazard = self._ended / np.maximum(self._reached + passed, 1e-9)
        alive = np.cumprod(1 - np.clip(hazard, 0.0, 1.0))
        return np.concatenate(([1.0], alive[:-1]))


def bins_of(output_lens: Floats, predicted_lens: Floats) -> Ints:
    """The bin in which each ratio lies; 0 for no output at all."""
    ratios = np.log(np.maximum(output_lens, 1e-3) / predicted_lens)
    return np.clip((ratios - _LOW) / _WIDTH, 0, NUM_BINS - 1).astype(np.int64)
