"""Length errors: how far real output lengths lie from predicted ones, learnt from what has ended.

Whatever makes the predictions, the ratio real / predicted has some distribution. It is kept as
hazards over bins of its logarithm: of the sequences that reached a bin, the part that ended in it.
Those still running count among the ones that reached a bin, so that early on the short ones, which
end first, do not make all look short (a Kaplan-Meier estimate). A constant prediction thus turns
into the distribution of all lengths by itself.
"""

from collections.abc import Iterable
from math import erf, exp, inf, log

import numpy as np
from numpy.typing import NDArray

from engine.sequence import Sequence

_LOW, _HIGH, _WIDTH = -4.0, 4.0, 0.125
_EDGES = np.arange(_LOW, _HIGH, _WIDTH)
NUM_BINS = len(_EDGES)

OUTCOME_WEIGHTS = np.array([1 / 6, 2 / 3, 1 / 6])
"""How likely the three outcomes of a prediction are (Gauss-Hermite quadrature)."""
_OUTCOMES = np.array([-(3**0.5), 0.0, 3**0.5])
# Spread of the logarithms of output lengths in ShareGPT-like traffic.
_GUESS_SIGMA = 1.1
# Predictions that explain less than this of the lengths say nothing.
_LEAST_SLOPE = 0.05
_LONGEST_LOG = 50.0

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class LengthErrors:
    """Survival over the logarithm of (generated / predicted).

    Before anything has ended the logarithm is taken as normal with `prior_sigma`, and with a larger
    one where nobody predicts; that counts as much as `prior_weight` sequences.
    """

    def __init__(self, prior_sigma: float, prior_weight: float) -> None:
        self._prior = _normal(prior_sigma, prior_weight)
        self._prior_of_guesses = _normal(_GUESS_SIGMA, prior_weight)
        self._ended = np.zeros(NUM_BINS)
        self._reached = np.zeros(NUM_BINS)
        self._expected = np.zeros(3)  # count, sum and sum of squares of ln(predicted)
        self._num_guesses = 0

    def observe(self, output_len: int, predicted_len: int) -> None:
        """A sequence has ended after `output_len` tokens."""
        index = min(NUM_BINS - 1, max(0, int((log(output_len / predicted_len) - _LOW) / _WIDTH)))
        self._ended[index] += 1
        self._reached[: index + 1] += 1

    def expect(self, predicted_len: int, *, is_guess: bool = False) -> None:
        """A sequence was submitted with this prediction, or without one."""
        x = log(predicted_len)
        self._num_guesses += is_guess
        self._expected += (1, x, x * x)

    def real_lens(self, predicted_lens: Floats, survival: Floats) -> Floats:
        """What the predictions may turn out to be: [3, predictions], see `OUTCOME_WEIGHTS`.

        The logarithms of real lengths are taken as normal, and predictions as them with independent
        noise. Given a prediction, the real one then lies nearer to the middle, with a spread of its
        own; the three outcomes stand for that.
        """
        middle, bias, slope, sigma = self._regression(survival)
        expected = middle + bias + slope * (np.log(predicted_lens) - middle)
        lens: Floats = np.exp(expected + sigma * _OUTCOMES[:, None])
        return lens

    def prediction_of(self, real_len: float, survival: Floats) -> float:
        """The prediction from which on real lengths of `real_len` or more are to be expected.

        Infinite, or 0, where predictions say nothing, so that nobody, or everybody, is.
        """
        middle, bias, slope, _ = self._regression(survival)
        above = log(real_len) - middle - bias
        if slope < _LEAST_SLOPE:
            return inf if above > 0 else 0.0
        return exp(min(_LONGEST_LOG, middle + above / slope))

    def _regression(self, survival: Floats) -> tuple[float, float, float, float]:
        """Of ln(real) on ln(predicted): middle, bias, slope, and what it leaves unexplained."""
        count, total, squares = self._expected
        middle = total / max(1.0, count)
        spread = max(0.0, squares / max(1.0, count) - middle**2)
        part = survival - np.append(survival[1:], 0.0)
        centres = _EDGES + _WIDTH / 2
        bias = (part * centres).sum()
        noise = (part * (centres - bias) ** 2).sum()
        slope = max(0.0, 1 - noise / spread) if spread > 0 else 0.0
        return middle, bias, slope, (slope * noise) ** 0.5

    def survival_beside(self, live: Iterable[Sequence]) -> Floats:
        """Probability to reach each bin, as the ended and the live sequences have it."""
        rows = [(len(s.token_ids) - s.num_prompt_tokens, s.predicted_len) for s in live]
        table = np.array(rows, dtype=np.float64).reshape(-1, 2)
        return self.survival(bins_of(table[:, 0], table[:, 1]))

    def survival(self, live_bins: Ints) -> Floats:
        """Probability to reach each bin; `live_bins` are where the live sequences are now."""
        counts = np.bincount(live_bins, minlength=NUM_BINS)
        # A live sequence has reached the bins up to its own, and says nothing of that one's hazard.
        passed = np.cumsum(counts[::-1])[::-1] - counts
        only_guesses = 0 < self._num_guesses == self._expected[0]
        ended, reached = self._prior_of_guesses if only_guesses else self._prior
        hazard = (self._ended + ended) / np.maximum(self._reached + reached + passed, 1e-9)
        alive = np.cumprod(1 - np.clip(hazard, 0.0, 1.0))
        return np.concatenate(([1.0], alive[:-1]))


def bins_of(output_lens: Floats, predicted_lens: Floats) -> Ints:
    """The bin in which each ratio lies; 0 for no output at all."""
    ratios = np.log(np.maximum(output_lens, 1e-3) / predicted_lens)
    return np.clip((ratios - _LOW) / _WIDTH, 0, NUM_BINS - 1).astype(np.int64)


def _normal(sigma: float, weight: float) -> tuple[Floats, Floats]:
    """Endings in each bin and arrivals at it, of `weight` sequences with a normal logarithm."""
    survival = np.array([0.5 - 0.5 * erf(edge / sigma / 2**0.5) for edge in _EDGES])
    hazard = 1 - np.append(survival[1:], 0.0) / np.maximum(survival, 1e-12)
    return weight * survival * hazard, weight * survival
