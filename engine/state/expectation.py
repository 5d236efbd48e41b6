"""Expectation: the predicted length of an output, and how certain the prediction is."""

from dataclasses import dataclass
from math import exp
from typing import Literal

# Standard deviation of ln(output length) in ShareGPT-like traffic.
_GUESS_SPREAD = 1.1
# Lower bound for predicted spreads: below it, a length twice as long would be beyond all bins.
_MIN_SPREAD = 0.2
_MAX_SPREAD = 3.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """The expected output length in tokens; `spread` is the standard deviation of its logarithm.

    `kind` is "distribution" if the predictor returned a spread, "point" if it returned only a
    length, and "guess" if there is no prediction.
    """

    mean: int
    median: float
    spread: float
    kind: Literal["distribution", "point", "guess"]


def expectation_of(
    predicted_len: int, spread: float, max_tokens: int, *, guess: int, point_spread: float
) -> Expectation:
    """The expectation from the fields of a message, in which 0 means unknown.

    `guess` (tokens) replaces an unknown length; `point_spread` replaces an unknown spread. Lengths
    are assumed to be lognormal: ln(mean) is ln(median) + spread^2 / 2.
    """
    if not predicted_len:
        mean = min(guess, max_tokens)
        return Expectation(mean, mean, _GUESS_SPREAD, "guess")
    mean = min(predicted_len, max_tokens)
    if not spread:
        return Expectation(mean, mean, point_spread, "point")
    spread = min(_MAX_SPREAD, max(0.0, spread))
    median = min(max_tokens, max(1.0, predicted_len * exp(-(spread**2) / 2)))
    return Expectation(mean, median, max(_MIN_SPREAD, spread), "distribution")
