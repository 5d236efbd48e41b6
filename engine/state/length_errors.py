"""Length errors: the distribution of real around predicted output lengths, learnt in service.

A prediction is a median and a spread, the standard deviation of the logarithm of the length; if the
predictor returns no spread, one is assumed. The distance of ln(real length) from ln(median), in
spreads, has a distribution that is taken to be the same for all sequences. It is stored as hazards
over bins: of the sequences that reached a bin, the part that ended in it. Running sequences count
among those that reached a bin (a Kaplan-Meier estimate); otherwise the short ones, which end first,
would make all look short. A constant prediction thus becomes the distribution of all lengths, and a
predictor that is too certain, or always too low, is corrected.
"""

from collections.abc import Iterable
from math import erf, exp, inf, log

import numpy as np
from numpy.typing import NDArray

from engine.state.expectation import Expectation
from engine.state.sequence import Sequence

# In spreads. With a spread of 0.5, four of them are a factor of seven.
_LOW, _HIGH, _WIDTH = -8.0, 8.0, 0.125
_EDGES = np.arange(_LOW, _HIGH, _WIDTH)
NUM_BINS = len(_EDGES)

OUTCOME_WEIGHTS = np.array([1 / 6, 2 / 3, 1 / 6])
"""Weights of the three outcomes of a prediction (Gauss-Hermite quadrature)."""
_OUTCOMES = np.array([-(3**0.5), 0.0, 3**0.5])
# Below this slope, predictions are taken to carry no information on lengths.
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

        Logarithms of real lengths are taken as normal. If the predictor returns spreads, they vary
        around its median by these. Other predictions are taken as the real lengths with independent
        noise: the real length is then nearer to the mean of all, with a spread of its own.
        """
        middle, bias, slope, noise = self._regression(survival)
        expected = middle + bias * spreads + slope * (np.log(medians) - middle)
        lens: Floats = np.exp(expected + (slope * noise) ** 0.5 * spreads * _OUTCOMES[:, None])
        return lens

    def prediction_of(self, real_len: float, survival: Floats, sigmas: float = 0.0) -> float:
        """The predicted mean in tokens from which on real lengths of `real_len` are expected.

        With `sigmas`, from which on they are that many standard deviations above the expectation.
        If predictions carry no information, infinity (no sequence qualifies) or 0 (all do).
        """
        middle, bias, slope, noise = self._regression(survival)
        count, _, _, _, spreads, means = self._expected / max(1.0, self._expected[0])
        above = log(real_len) - middle - (bias + sigmas * (slope * noise) ** 0.5) * spreads
        if slope < _MIN_SLOPE:
            return inf if above > 0 else 0.0
        skew = means - middle if count else 0.0
        return exp(min(_MAX_LOG, middle + skew + above / slope))

    def _regression(self, survival: Floats) -> tuple[float, float, float, float]:
        """Of ln(real) on ln(median): mean of ln(median), bias in spreads, slope, noise variance."""
        count = max(1.0, self._expected[0])
        middle, square, spread = self._expected[2:5] / count
        part = survival - np.append(survival[1:], 0.0)
        centres = _EDGES + _WIDTH / 2
        bias = (part * centres).sum()
        noise = (part * (centres - bias) ** 2).sum()
        if self._expected[1] == count:  # all have predicted spreads
            return middle, bias, 1.0, noise
        variance = max(0.0, square - middle**2)
        slope = max(0.0, 1 - noise * spread**2 / variance) if variance > 0 else 0.0
        return middle, bias, slope, noise

    def survival_beside(self, live: Iterable[Sequence]) -> Floats:
        """Probability to reach each bin [NUM_BINS], from the ended and the `live` sequences."""
        rows = [
            (len(s.token_ids) - s.num_prompt_tokens, s.expected.median, s.expected.spread)
            for s in live
        ]
        table = np.array(rows, dtype=np.float64).reshape(-1, 3)
        return self.survival(bins_of(table[:, 0], table[:, 1], table[:, 2]))

    def survival(self, live_bins: Ints) -> Floats:
        """Probability to reach each bin [NUM_BINS]; `live_bins` are those of live sequences."""
        counts = np.bincount(live_bins, minlength=NUM_BINS)
        # A live sequence has reached the bins before its own, and does not count for its own yet.
        passed = np.cumsum(counts[::-1])[::-1] - counts
        reached = self._reached + self._prior_reached + passed
        hazard = (self._ended + self._prior_ended) / np.maximum(reached, 1e-9)
        alive = np.cumprod(1 - np.clip(hazard, 0.0, 1.0))
        return np.concatenate(([1.0], alive[:-1]))


def bins_of(output_lens: Floats, medians: Floats, spreads: Floats) -> Ints:
    """The bin of each length, same shape; 0 for no output."""
    distances = np.log(np.maximum(output_lens, 1e-3) / medians) / spreads
    return np.clip((distances - _LOW) / _WIDTH, 0, NUM_BINS - 1).astype(np.int64)


def _normal(weight: float) -> tuple[Floats, Floats]:
    """Ends in each bin, and sequences that reach it, of `weight` normal sequences."""
    survival = np.array([0.5 - 0.5 * erf(edge / 2**0.5) for edge in _EDGES])
    hazard = 1 - np.append(survival[1:], 0.0) / np.maximum(survival, 1e-12)
    return weight * survival * hazard, weight * survival
