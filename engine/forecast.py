"""Forecast: how long the rest of the work takes with steps of a given size.

Large steps make tokens cheap and let everybody in soon; small ones make short rounds for the
longest answer, which takes as many rounds as it has tokens, and fill the rows that it would leave
empty. Which is better depends on what is left, so it is reckoned through: prompts are fed in order
at so many tokens a step, each sequence decodes from its admission on, one token a round, and when
all are in the rows run out one after the other. KV is not reckoned with here.
"""

from dataclasses import dataclass

import numpy as np

from engine.cost_model import CostModel
from engine.lengths import Floats

# Each brings the number of rounds closer; four digits of it are enough to compare sizes.
_ITERATIONS = 8


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left, in groups of sequences alike, in order of admission; all arrays are [groups].

    `counts` of sequences, tokens that each has to feed (`prompt_tokens`, 0 where it is live) and to
    generate (`output_lens`).
    """

    counts: Floats
    prompt_tokens: Floats
    output_lens: Floats


def rest_s(cost: CostModel, sizes: list[int], rest: Rest, num_stages: int) -> Floats:
    """Seconds until all have ended with steps of each size, [sizes]."""
    to_feed = rest.counts * rest.prompt_tokens
    total = to_feed.sum()
    # The part of the admissions that is over when a group begins.
    starts = (to_feed.cumsum() - to_feed) / max(1.0, total)
    per_round = num_stages * np.array(sizes, dtype=float)
    rounds = total / per_round
    for _ in range(_ITERATIONS):
        decoded = np.minimum(rest.output_lens, rounds[:, None] * (1 - starts)) @ rest.counts
        rounds = (total + decoded) / per_round
    # Rounds that each group goes on after the last admission, [sizes, groups].
    left = np.maximum(0.0, rounds[:, None] * (starts - 1) + rest.output_lens)
    order = left.argsort(axis=1)
    left = np.take_along_axis(left, order, axis=1)
    ended = rest.counts[order].cumsum(axis=1)
    alive = rest.counts.sum() - ended + rest.counts[order]
    lasting = np.diff(left, axis=1, prepend=0.0)
    rows = np.maximum(1, np.rint(alive / num_stages)).astype(int)
    drain_s: Floats = (lasting * num_stages * cost.linear_many(rows)).sum(axis=1)
    fill_s: Floats = rounds * num_stages * cost.linear_many(np.array(sizes))
    return fill_s + drain_s


def best_size(cost: CostModel, sizes: list[int], rest: Rest, num_stages: int) -> int:
    """The size with which the rest ends first."""
    return sizes[int(rest_s(cost, sizes, rest, num_stages).argmin())]
