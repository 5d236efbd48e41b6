"""Top-up: determines how many tokens a step of a refill feeds (docs/papers.md, section 2 a and c).

A decode micro-batch leaves the rest of its stair unused, and up to the knee of the cost curve a
larger step makes every token cheaper. Beyond the knee, larger steps gain little and make each
pipeline turn longer, which delays the longest answer: it takes one turn per token.

Online requests want short turns, too: if nothing else is open, throughput is limited by their
arrivals and not by the cost of a token. Their prompts are then spread over `--online-steps` steps,
which are larger only if so many wait. A refill that the KV cache limits is spread in the same way.
"""

from math import ceil

from engine.costs.cost_model import CostModel


def knee(cost: CostModel, longest: int, tolerance: float) -> int:
    """The smallest step size, up to `longest` tokens, with about the lowest cost per token.

    The cost may exceed the lowest seconds per token by the fraction `tolerance`. The knee is the
    end of a stair, or `longest`.
    """
    sizes = [size for size in cost.edges if size < longest] + [longest]
    limit = min(cost.linear_s(size) / size for size in sizes) * (1 + tolerance)
    return next(size for size in sizes if cost.linear_s(size) / size <= limit)


def paced(cost: CostModel, num_rows: int, num_tokens: int, num_steps: int) -> int:
    """The size of steps of `num_rows` decode rows that feed `num_tokens` in `num_steps` steps.

    The rest of the stair is free, so the size is the end of a stair.
    """
    return cost.edge(num_rows + ceil(num_tokens / num_steps))
