"""What a prefix cache could save at most: the beginnings that prompts have in common."""

from collections.abc import Sequence
from itertools import pairwise

from simulator.arrival import Arrival


def cached_tokens(arrivals: Sequence[Arrival]) -> list[int]:
    """For each arrival, the most tokens of its prompt that can be in a cache, less than all.

    The longest beginning that it shares with any other prompt, and for a turn of a conversation all
    that came before.
    """
    most = [0] * len(arrivals)
    prompts = [
        (arrival.prompt, i)
        for i, arrival in enumerate(arrivals)
        if arrival.prompt is not None and arrival.after is None
    ]
    # The most similar prompts are neighbours in order.
    for (one, i), (other, j) in pairwise(sorted(prompts)):
        differs = (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        shared = next(differs, min(len(one), len(other)))
        most[i], most[j] = max(most[i], shared), max(most[j], shared)
    for i, arrival in enumerate(arrivals):
        if arrival.after is not None:
            before = arrivals[arrival.after]
            most[i] = before.num_prompt_tokens + before.output_len
    return [min(n, a.num_prompt_tokens - 1) for n, a in zip(most, arrivals, strict=True)]
