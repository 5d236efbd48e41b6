"""Length errors: how far real output lengths lie from predicted ones, learnt from what has ended.

A prediction is a median and a spread, which is the standard deviation of the logarithm: what the
predictor says of it, or an assumption where it says nothing. How many spreads the logarithm of a
real length lies from the median has some distribution, the same for all. It is kept as hazards over
bins: of the sequences that reached a bin, the part that ended in it. Those still running count
among the ones that reached a bin, so that early on the short ones, which end first, do not make all
look short (a Kaplan-Meier estimate). So a constant prediction turns into the distribution of all
lengths by itself, and a predictor that is too sure of itself, or always too low, is seen through.
"""

from collections.abc import Iterable
from math import erf, exp, inf, log

import numpy as np
from numpy.typing import NDArray

from engine.state.expectation import Expectation
from engine.state.sequence import Sequence

# In spreads. Four of them are a factor of seven where the spread is 0.5.
_LOW, _HIGH, _WIDTH = -8.0, 8.0, 0.125
_EDGES = np.arange(_LOW, _HIGH, _WIDTH)
NUM_BINS = len(_EDGES)

OUTCOME_WEIGHTS = np.array([1 / 6, 2 / 3, 1 / 6])
"""How likely the three outcomes of a prediction are (Gauss-Hermite quadrature)."""
_OUTCOMES = np.array([-(3**0.5), 0.0, 3**0.5])
# Predictions that explain less than this of the lengths say nothing.
_LEAST_SLOPE = 0.05
_LONGEST_LOG = 50.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class LengthErrors:
    """Survival over bins of ln(generated / median) / spread.

    Before anything has ended it is taken as normal, and that counts as much as `prior_weight`
    sequences.
    """

    def __init__(self, prior_weight: float) -> None:
        self._prior_ended, self._prior_reached = _normal(prior_weight)
        self._ended = np.zeros(NUM_BINS)
        self._reached = np.zeros(NUM_BINS)
        # Count, those told, sum and sum of squares of ln(median), sum of spreads, of ln(mean).
        self._expected = np.zeros(6)

    def observe(self, output_len: int, expected: Expectation) -> None:
        """A sequence has ended after `output_len` tokens."""
        spreads = (log(output_len / expected.median)) / expected.spread
        index = min(NUM_BINS - 1, max(0, int((spreads - _LOW) / _WIDTH)))
        self._ended[index] += 1
        self._reached[: index + 1] += 1

    def expect(self, expected: Expectation, sign: int = 1) -> None:
        """A sequence was submitted with this expectation; `sign` -1 takes it back."""
        x, is_told = log(expected.median), expected.kind == "told"
        self._expected += (
            sign,
            sign * is_told,
            sign * x,
            sign * x * x,
            sign * expected.spread,
            sign * log(expected.mean),
        )

    def real_lens(self, medians: Floats, spreads: Floats, survival: Floats) -> Floats:
        """What the expectations may turn out to be: [3, sequences], see `OUTCOME_WEIGHTS`.

        Logarithms of real lengths are taken as normal. Where a predictor tells its spread, they
        scatter around its median by that. Other predictions are taken as the real ones with
        independent noise: given one, the real one then lies nearer to the middle, with a spread of
        its own.
        """
        middle, bias, slope, noise = self._regression(survival)
        expected = middle + bias * spreads + slope * (np.log(medians) - middle)
        lens: Floats = np.exp(expected + (slope * noise) ** 0.5 * spreads * _OUTCOMES[:, None])
        return lens

    def prediction_of(self, real_len: float, survival: Floats, sigmas: float = 0.0) -> float:
        """The predicted mean from which on real lengths of `real_len` or more are to be expected.

        With `sigmas`, are possible: as many deviations as that above what is expected. Infinite, or
        0, where predictions say nothing, so that nobody, or everybody, is.
        """
        middle, bias, slope, noise = self._regression(survival)
        count, _, _, _, spreads, means = self._expected / max(1.0, self._expected[0])
        above = log(real_len) - middle - (bias + sigmas * (slope * noise) ** 0.5) * spreads
        if slope < _LEAST_SLOPE:
            return inf if above > 0 else 0.0
        skew = means - middle if count else 0.0
        return exp(min(_LONGEST_LOG, middle + skew + above / slope))

    def _regression(self, survival: Floats) -> tuple[float, float, float, float]:
        """Of ln(real) on ln(median): the middle, then in spreads bias, slope, and the noise."""
        count = max(1.0, self._expected[0])
        middle, square, spread = self._expected[2:5] / count
        part = survival - np.append(survival[1:], 0.0)
        centres = _EDGES + _WIDTH / 2
        bias = (part * centres).sum()
        noise = (part * (centres - bias) ** 2).sum()
        if self._expected[1] == count:  # all told
            return middle, bias, 1.0, noise
        variance = max(0.0, square - middle**2)
        slope = max(0.0, 1 - noise * spread**2 / variance) if variance > 0 else 0.0
        return middle, bias, slope, noise

    def survival_beside(self, live: Iterable[Sequence]) -> Floats:
        """Probability to reach each bin, as the ended and the live sequences have it."""
        rows = [
            (len(s.token_ids) - s.num_prompt_tokens, s.expected.median, s.expected.spread)
            for s in live
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return self.survival(bins_of(table[:, 0], table[:, 1], table[:, 2]))

    def survival(self, live_bins: Ints) -> Floats:
        """Probability to reach each bin; `live_bins` are where the live sequences are now."""
        counts = np.bincount(live_bins, minlength=NUM_BINS)
        # A live sequence has reached the bins up to its own, and says nothing of that one's hazard.
        passed = np.cumsum(counts[::-1])[::-1] - counts
        reached = self._reached + self._prior_reached + passed
        hazard = (self._ended + self._prior_ended) / np.maximum(reached, 1e-9)
        alive = np.cumprod(1 - np.clip(hazard, 0.0, 1.0))
        return np.concatenate(([1.0], alive[:-1]))


def bins_of(output_lens: Floats, medians: Floats, spreads: Floats) -> Ints:
    """The bin in which each length lies; 0 for no output at all."""
    distances = np.log(np.maximum(output_lens, 1e-3) / medians) / spreads
    return np.clip((distances - _LOW) / _WIDTH, 0, NUM_BINS - 1).astype(np.int64)


def _normal(weight: float) -> tuple[Floats, Floats]:
    """Endings in each bin and arrivals at it, of `weight` normal sequences."""
    survival = np.array([0.5 - 0.5 * erf(edge / 2**0.5) for edge in _EDGES])
    hazard = 1 - np.append(survival[1:], 0.0) / np.maximum(survival, 1e-12)
    return weight * survival * hazard, weight * survival
