"""Expectation: what is known beforehand of an output's length, and how well it is known."""

from dataclasses import dataclass
from math import exp
from typing import Literal

# Spread of the logarithms of output lengths in ShareGPT-like traffic.
_GUESS_SPREAD = 1.1
# A predictor that claims less is not believed: a length twice as long would be beyond all bins.
_LEAST_SPREAD = 0.2
_MOST_SPREAD = 3.0


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is expected of an output's length, in tokens.

    `kind` is "told" where the predictor says how sure it is, "point" where it names a length only,
    and "guess" where nobody predicts.
    """

    mean: int
    median: float
    spread: float
    kind: Literal["told", "point", "guess"]


def expectation_of(
    predicted_len: int, spread: float, max_tokens: int, *, guess: int, point_spread: float
) -> Expectation:
    """From a message's fields, where 0 is unknown: `guess` tokens, or a spread of `point_spread`.

    Lengths are lognormal for the purpose, so the mean lies spread^2 / 2 above the median in their
    logarithm.
    """
    if not predicted_len:
        mean = min(guess, max_tokens)
        return Expectation(mean, mean, _GUESS_SPREAD, "guess")
    mean = min(predicted_len, max_tokens)
    if not spread:
        return Expectation(mean, mean, point_spread, "point")
    spread = min(_MOST_SPREAD, max(0.0, spread))
    median = min(max_tokens, max(1.0, predicted_len * exp(-(spread**2) / 2)))
    return Expectation(mean, median, max(_LEAST_SPREAD, spread), "told")
