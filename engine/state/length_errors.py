"""Length errors: how real output lengths are distributed around predictions, learnt in service.

A prediction is a median and a spread, which is the standard deviation of the logarithm of the
length; if the predictor returns no spread, one is assumed. The error is the distance of ln(real
length) from ln(median), in spreads. Its distribution is assumed to be the same for all sequences.
It is stored as hazards over bins: of the sequences that reached a bin, the fraction that ended in
it. Running sequences count as having reached a bin (a Kaplan-Meier estimate); otherwise the
estimate would be too short, because short sequences end first. If the prediction is constant, the
result is the distribution of all lengths; a predictor that is too certain, or always too low, is
corrected.
"""

from collections.abc import Iterable
from math import erf, exp, inf, log

import numpy as np
from numpy.typing import NDArray

from engine.state.expectation import Expectation
from engine.state.sequence import Sequence

# Range and width of the bins, in spreads. At a spread of 0.5, four spreads are a factor of 7.
_LOW, _HIGH, _WIDTH = -8.0, 8.0, 0.125
_EDGES = np.arange(_LOW, _HIGH, _WIDTH)
NUM_BINS = len(_EDGES)

OUTCOME_WEIGHTS = np.array([1 / 6, 2 / 3, 1 / 6])
"""Weights of the three outcomes of a prediction (Gauss-Hermite quadrature)."""
_OUTCOMES = np.array([-(3**0.5), 0.0, 3**0.5])
# Below this slope, predictions are assumed to carry no information about lengths.
_MIN_SLOPE = 0.05
_MAX_LOG = 50.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class LengthErrors:
    """Survival over bins of ln(generated / median) / spread.

    The prior is a normal distribution with the weight of `prior_weight` sequences.
    """

    def __init__(self, prior_weight: float) -> None:
        self._prior_ended, self._prior_reached = _normal(prior_weight)
        self._ended = np.zeros(NUM_BINS)
        self._reached = np.zeros(NUM_BINS)
        # Sums: 1, has a predicted spread, ln(median), ln(median)^2, spread, ln(mean).
        self._expected = np.zeros(6)

    def observe(self, output_len: int, expected: Expectation) -> None:
        """Record that a sequence has ended after `output_len` tokens (>= 1)."""
        spreads = (log(output_len / expected.median)) / expected.spread
        index = min(NUM_BINS - 1, max(0, int((spreads - _LOW) / _WIDTH)))
        self._ended[index] += 1
        self._reached[: index + 1] += 1

    def expect(self, expected: Expectation, sign: int = 1) -> None:
        """Record the expectation of a submitted sequence; `sign` -1 removes it."""
        x, has_spread = log(expected.median), expected.kind == "distribution"
        self._expected += (
            sign,
            sign * has_spread,
            sign * x,
            sign * x * x,
            sign * expected.spread,
            sign * log(expected.mean),
        )

    def real_lens(self, medians: Floats, spreads: Floats, survival: Floats) -> Floats:
        """Possible real lengths in tokens [3, sequences], with the weights `OUTCOME_WEIGHTS`.

        Real lengths are assumed to be lognormal. If the predictor returns spreads, real lengths
        vary around its median by these spreads. Predictions without spreads are assumed to be the
        real lengths with independent noise: the real length is then expected nearer to the mean of
        all lengths, with its own spread.
        """
        middle, bias, slope, noise = self._regression(survival)
        expected = middle + bias * spreads + slope * (np.log(medians) - middle)
        lens: Floats = np.exp(expected + (slope * noise) ** 0.5 * spreads * _OUTCOMES[:, None])
        return lens

    def prediction_of(self, real_len: float, survival: Floats, sigmas: float = 0.0) -> float:
        """The lowest predicted mean, in tokens, at which a real length of `real_len` is expected.

        With `sigmas`, `real_len` is that many standard deviations above the expected length. If
        predictions carry no information, the result is infinity (no sequence qualifies) or 0 (all
        sequences qualify).
        """
        middle, bias, slope, noise = self._regression(survival)
        count, _, _, _, spreads, means = self._expected / max(1.0, self._expected[0])
        above = log(real_len) - middle - (bias + sigmas * (slope * noise) ** 0.5) * spreads
        if slope < _MIN_SLOPE:
            return inf if above > 0 else 0.0
        skew = means - middle if count else 0.0
        return exp(min(_MAX_LOG, middle + skew + above / slope))

    def _regression(self, survival: Floats) -> tuple[float, float, float, float]:
        """Regress ln(real) on ln(median).

        Returns the mean of ln(median), the bias in spreads, the slope, and the variance of the
        noise.
        """
        count = max(1.0, self._expected[0])
        middle, square, spread = self._expected[2:5] / count
        part = survival - np.append(survival[1:], 0.0)
        centres = _EDGES + _WIDTH / 2
        bias = (part * centres).sum()
        noise = (part * (centres - bias) ** 2).sum()
        if self._expected[1] == count:  # all predictions have spreads
            return middle, bias, 1.0, noise
        variance = max(0.0, square - middle**2)
        slope = max(0.0, 1 - noise * spread**2 / variance) if variance > 0 else 0.0
        return middle, bias, slope, noise

    def survival_beside(self, live: Iterable[Sequence]) -> Floats:
        """The probability of reaching each bin [NUM_BINS], from ended and `live` sequences."""
        rows = [
            (len(s.token_ids) - s.num_prompt_tokens, s.expected.median, s.expected.spread)
            for s in live
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return self.survival(bins_of(table[:, 0], table[:, 1], table[:, 2]))

    def survival(self, live_bins: Ints) -> Floats:
        """The probability of reaching each bin [NUM_BINS], given the bins of live sequences."""
        counts = np.bincount(live_bins, minlength=NUM_BINS)
        # A live sequence counts in the bins before its current bin, but not yet in that bin.
        passed = np.cumsum(counts[::-1])[::-1] - counts
        reached = self._reached + self._prior_reached + passed
        hazard = (self._ended + self._prior_ended) / np.maximum(reached, 1e-9)
        alive = np.cumprod(1 - np.clip(hazard, 0.0, 1.0))
        return np.concatenate(([1.0], alive[:-1]))


def bins_of(output_lens: Floats, medians: Floats, spreads: Floats) -> Ints:
    """The bin of each length, in the same shape; bin 0 if there is no output yet."""
    distances = np.log(np.maximum(output_lens, 1e-3) / medians) / spreads
    return np.clip((distances - _LOW) / _WIDTH, 0, NUM_BINS - 1).astype(np.int64)


def _normal(weight: float) -> tuple[Floats, Floats]:
    """For `weight` normally distributed sequences: how many end in, and reach, each bin."""
    survival = np.array([0.5 - 0.5 * erf(edge / 2**0.5) for edge in _EDGES])
    hazard = 1 - np.append(survival[1:], 0.0) / np.maximum(survival, 1e-12)
    return weight * survival * hazard, weight * survival
