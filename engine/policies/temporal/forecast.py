"""Forecast: estimates how long the remaining work takes with steps of a given size.

Large steps make tokens cheap and admit all sequences early. Small steps keep pipeline turns short
for the longest answer, which takes one turn per token, and leave sequences for the rows that would
be empty beside that answer. If the KV cache holds only some of the sequences at a time, the others
wait until those have ended, and prompts are best fed beside decode rows. The best size depends on
the remaining work, so it is computed with a model: prompts are fed in order with a given number of
tokens per step, each sequence decodes one token per turn after its admission, and the rows end one
by one after the last admission.
"""

from dataclasses import dataclass

import numpy as np

from engine.costs.cost_model import CostModel
from engine.state.length_errors import Floats

# Fixed-point iterations for the number of turns; four digits are enough to compare sizes.
_ITERATIONS = 8
# Work of up to this many KV caches is assumed to fit at once, because sequences end at
# different times.
_OVERCOMMIT = 1.2
# Another size than the first one must end the work this much sooner; the estimate is not better.
_LEAST_GAIN = 0.02


@dataclass(frozen=True, slots=True)
class Rest:
    """The remaining work in groups of similar sequences, in order of admission; arrays [groups].

    `counts` is the number of sequences in a group. The others are tokens per sequence: `lengths`
    is the current length, `prompt_tokens` is still to be fed (0 if the sequence is live), and
    `output_lens` is still to be generated.
    """

    counts: Floats
    lengths: Floats
    prompt_tokens: Floats
    output_lens: Floats

    def refills(self, kv_tokens: int) -> float:
        """How often a KV cache of `kv_tokens` must be filled for the work; at least 1."""
        tokens = float(self.counts @ (self.lengths + self.output_lens))
        return max(1.0, tokens / (_OVERCOMMIT * kv_tokens))

    def most_live(self, kv_tokens: int) -> float:
        """The number of half-generated sequences that a KV cache of `kv_tokens` holds."""
        row_turns = self.counts * self.output_lens
        return float(
            kv_tokens * row_turns.sum() / (row_turns @ (self.lengths + self.output_lens / 2))
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
    """Seconds until all sequences have ended, for each step size [sizes].

    `sizes` are in tokens per step. If `decoding`, live sequences decode while prompts are fed.
    """
    step_tokens, step_s = np.array(sizes, dtype=float), cost.linear_many(np.array(sizes))
    to_feed = rest.counts * rest.prompt_tokens
    total = to_feed.sum()
    # The fraction of the admissions that is complete when a group begins.
    starts = (to_feed.cumsum() - to_feed) / max(1.0, total) if decoding else 1.0
    turns, most_live = total / (num_stages * step_tokens), rest.most_live(kv_tokens)
    for _ in range(_ITERATIONS):
        decoded = np.minimum(rest.output_lens, turns[:, None] * (1 - starts)) @ rest.counts
        turns = np.maximum((total + decoded) / (num_stages * step_tokens), decoded / most_live)
    steps = turns * num_stages
    rows = decoded / np.maximum(1.0, steps)
    fed_in = np.minimum(steps, total / np.maximum(1.0, step_tokens - rows))
    fill_s = fed_in * step_s + (steps - fed_in) * _linear_s(cost, rows)
    # After a refill, the first steps of a different size leave a bubble.
    bubble_s = rest.refills(kv_tokens) * (num_stages - 1) * step_s
    # Turns for which each group continues after the last admission, [sizes, groups].
    left = np.maximum(0.0, turns[:, None] * (starts - 1) + rest.output_lens)
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
    """The step size in tokens at which the work ends first, and whether decoding should pause.

    The first size is kept unless another one is clearly better. Decoding may pause only if all
    waiting work fits into the KV cache in one refill.
    """
    mixed = rest_s(cost, sizes, rest, num_stages, kv_tokens)
    paused = rest_s(cost, sizes, rest, num_stages, kv_tokens, decoding=False)
    if rest.refills(kv_tokens) == 1 and paused.min() < mixed.min():
        return sizes[int(paused.argmin())], True
    best = int(mixed.argmin())
    return sizes[best if mixed[best] < (1 - _LEAST_GAIN) * mixed[0] else 0], False


def _linear_s(cost: CostModel, rows: Floats) -> Floats:
    return cost.linear_many(np.maximum(1, np.rint(rows)).astype(np.int64))
