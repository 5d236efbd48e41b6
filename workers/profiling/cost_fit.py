"""The cost fit: fits the terms of `StageCosts` to measured steps.

    seconds = staircase(tokens fed) + KV tokens read * a + rows * b + pairs * c

All terms are fitted at once, by least squares of the relative error, under the condition that no
term is negative and that the staircase never falls (its rises are the unknowns). A few steps that
were delayed by other load on the machine must not distort the fit: unusually large errors count
less (iteratively reweighted least squares with Huber's weights).
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from configs.profiles import MeasuredStep
from wire.messages import StageCosts

NUM_FITS = 12
# Huber's tuning constant: errors up to this many standard deviations count in full.
USUAL_ERRORS = 1.345
# Relative errors below this always count in full.
LEAST_ERROR = 0.01
# If the steps cannot separate tokens from rows, the cost is attributed to tokens.
_PREFER_TOKENS = 1e-3

Array = NDArray[np.float64]


def fit(steps: Sequence[MeasuredStep]) -> StageCosts:
    """Fit the costs to the measured `steps`; the result is empty if there are none.

    The staircase has a point at each number of tokens that was measured.
    """
    if not steps:
        return StageCosts()
    knots = sorted({step.tokens for step in steps})
    measured = np.array([step.seconds for step in steps])
    columns = np.hstack([_rises(_column(steps, "tokens"), knots), _others(steps)])
    relative = columns / measured[:, None]
    preference = np.zeros((3, columns.shape[1]))
    scale = np.linalg.norm(relative, axis=0)
    preference[:, -3:] = np.diag(_PREFER_TOKENS * scale[-3:])
    weights = np.ones(len(steps))
    for _ in range(NUM_FITS):
        matrix = np.vstack([relative * weights[:, None], preference])
        solution = _non_negative_least_squares(matrix, np.append(weights, [0.0] * 3))
        errors = np.abs(relative @ solution - 1)
        usual = max(LEAST_ERROR, USUAL_ERRORS * 1.4826 * float(np.median(errors)))
        weights = np.sqrt(np.minimum(1.0, usual / np.maximum(errors, 1e-12)))
    stairs = np.cumsum(solution[:-3])
    kv_s, row_s, pair_s = (float(value) for value in solution[-3:])
    return StageCosts(tuple(knots), tuple(float(s) for s in stairs), kv_s, row_s, pair_s)


def predict(costs: StageCosts, steps: Sequence[MeasuredStep]) -> Array:
    """Predict the seconds of the steps [steps] from the costs.

    The staircase is interpolated between its points; beyond the last point, it is proportional to
    the tokens.
    """
    tokens = _column(steps, "tokens")
    xs, ys = np.array(costs.num_tokens, float), np.array(costs.seconds)
    linear = np.interp(tokens, xs, ys)
    if len(xs) > 1:
        linear = np.where(tokens > xs[-1], ys[-1] * tokens / xs[-1], linear)
    others = np.array([costs.kv_s_per_token, costs.row_s, costs.pair_s])
    seconds: Array = linear + _others(steps) @ others
    return seconds


def _column(steps: Sequence[MeasuredStep], name: str) -> Array:
    return np.array([getattr(step, name) for step in steps], dtype=float)


def _others(steps: Sequence[MeasuredStep]) -> Array:
    """The factors of the terms other than the staircase [steps, 3]."""
    return np.stack([_column(steps, name) for name in ("kv_tokens", "rows", "pairs")], axis=1)


def _rises(tokens: Array, knots: Sequence[int]) -> Array:
    """The fraction of each rise between two knots that a step includes [steps, knots]."""
    columns = [np.ones(len(tokens))]
    for left, right in pairwise(knots):
        columns.append(np.clip((tokens - left) / (right - left), 0.0, 1.0))
    return np.stack(columns, axis=1)


def _non_negative_least_squares(matrix: Array, target: Array) -> Array:
    """The x >= 0 that minimises |matrix x - target| (Lawson and Hanson 1974, chapter 23)."""
    scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
    orthogonal, a = np.linalg.qr(matrix / scale)  # a much smaller problem with the same solution
    b = orthogonal.T @ target
    x = np.zeros(a.shape[1])
    is_free = np.zeros(len(x), dtype=bool)
    for _ in range(3 * len(x)):
        gradient = np.where(is_free, -np.inf, a.T @ (b - a @ x))
        steepest = int(gradient.argmax())
        if gradient[steepest] <= 1e-9:
            break
        is_free[steepest] = True
        x, is_free = _walk(a, b, x, is_free)
    solution: Array = x / scale
    return solution


def _walk(
    a: Array, b: Array, x: Array, is_free: NDArray[np.bool_]
) -> tuple[Array, NDArray[np.bool_]]:
    """Move to the least squares of the free unknowns; those that would get negative are bound."""
    while is_free.any():
        best = np.zeros(len(x))
        best[is_free] = np.linalg.lstsq(a[:, is_free], b, rcond=None)[0]
        falls = is_free & (best <= 0)
        if not falls.any():
            return best, is_free
        part = np.min(x[falls] / np.maximum(x[falls] - best[falls], 1e-300))
        x = x + part * (best - x)
        is_free = is_free & (x > 1e-15)
        x = np.where(is_free, x, 0.0)
    return x, is_free
