"""Forecast: how long the rest of the work takes with steps of a given size.

Large steps make tokens cheap and let everybody in soon; small ones make short rounds for the
longest answer, which takes as many rounds as it has tokens, and fill the rows that it would leave
empty. Where the KV cache lets in only some at a time, rounds go by until others have left, and
prompts are best fed beside their decodes. Which size is best depends on what is left, so it is
reckoned through: prompts are fed in order at so many tokens a step, each sequence decodes from its
admission on, one token a round, and when all are in the rows run out one after the other.
"""

from dataclasses import dataclass

import numpy as np

from engine.costs.cost_model import CostModel
from engine.state.length_errors import Floats

# Each brings the number of rounds closer; four digits of it are enough to compare sizes.
_ITERATIONS = 8
# All has room at once up to so many times the KV cache, since it does not all end at once.
_ROOM_AT_ONCE = 1.2


@dataclass(frozen=True, slots=True)
class Rest:
    """What is left, in groups of sequences alike, in order of admission; all arrays are [groups].

    `counts` of sequences, tokens that each has (`lengths`), has to feed (`prompt_tokens`, 0 where
    it is live) and to generate (`output_lens`).
    """

    counts: Floats
    lengths: Floats
    prompt_tokens: Floats
    output_lens: Floats

    def refills(self, kv_tokens: int) -> float:
        """How often a KV cache of `kv_tokens` must be filled for it, at least once."""
        tokens = float(self.counts @ (self.lengths + self.output_lens))
        return max(1.0, tokens / (_ROOM_AT_ONCE * kv_tokens))

    def most_live(self, kv_tokens: int) -> float:
        """Sequences that a KV cache of `kv_tokens` holds, each half way through its answer."""
        row_rounds = self.counts * self.output_lens
        return float(
            kv_tokens * row_rounds.sum() / (row_rounds @ (self.lengths + self.output_lens / 2))
        )


def rest_s(
    cost: CostModel,
    sizes: list[int],
    rest: Rest,
    num_stages: int,
    kv_tokens: int,
    *,
    decoding: bool = True,
) -> Floats:
    """Seconds until all have ended with steps of each size, [sizes].

    `decoding` says whether those that are live go on while prompts are fed.
    """
    step_tokens, step_s = np.array(sizes, dtype=float), cost.linear_many(np.array(sizes))
    to_feed = rest.counts * rest.prompt_tokens
    total = to_feed.sum()
    # The part of the admissions that is over when a group begins.
    starts = (to_feed.cumsum() - to_feed) / max(1.0, total) if decoding else 1.0
    rounds, most_live = total / (num_stages * step_tokens), rest.most_live(kv_tokens)
    for _ in range(_ITERATIONS):
        decoded = np.minimum(rest.output_lens, rounds[:, None] * (1 - starts)) @ rest.counts
        rounds = np.maximum((total + decoded) / (num_stages * step_tokens), decoded / most_live)
    steps = rounds * num_stages
    rows = decoded / np.maximum(1.0, steps)
    fed_in = np.minimum(steps, total / np.maximum(1.0, step_tokens - rows))
    fill_s = fed_in * step_s + (steps - fed_in) * _linear_s(cost, rows)
    # Behind the last steps of a refill, the first of another size leave a bubble.
    bubble_s = rest.refills(kv_tokens) * (num_stages - 1) * step_s
    # Rounds that each group goes on after the last admission, [sizes, groups].
    left = np.maximum(0.0, rounds[:, None] * (starts - 1) + rest.output_lens)
    order = left.argsort(axis=1)
    left = np.take_along_axis(left, order, axis=1)
    ended = rest.counts[order].cumsum(axis=1)
    alive = rest.counts.sum() - ended + rest.counts[order]
    lasting = np.diff(left, axis=1, prepend=0.0)
    drain_s = (lasting * num_stages * _linear_s(cost, alive / num_stages)).sum(axis=1)
    seconds: Floats = fill_s + bubble_s + drain_s
    return seconds


def best_size(
    cost: CostModel, sizes: list[int], rest: Rest, num_stages: int, kv_tokens: int
) -> tuple[int, bool]:
    """The size with which the rest ends first, and whether decoding should pause for that.

    It may pause where all that waits has room in one refill.
    """
    mixed = rest_s(cost, sizes, rest, num_stages, kv_tokens)
    paused = rest_s(cost, sizes, rest, num_stages, kv_tokens, decoding=False)
    if rest.refills(kv_tokens) == 1 and paused.min() < mixed.min():
        return sizes[int(paused.argmin())], True
    return sizes[int(mixed.argmin())], False


def _linear_s(cost: CostModel, rows: Floats) -> Floats:
    return cost.linear_many(np.maximum(1, np.rint(rows)).astype(np.int64))
