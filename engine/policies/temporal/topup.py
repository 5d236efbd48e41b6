"""Top-up: how many tokens a step of a refill feeds (PAPERS.md, section 2 a and c).

A decode micro-batch leaves the rest of its stair unused, and up to the knee a larger step makes
every token cheaper. Beyond the knee larger steps bring hardly anything: they only make each round
longer, and the longest answer takes as many rounds as it has tokens.
"""

from engine.costs.cost_model import CostModel


def knee(cost: CostModel, longest: int, tolerance: float) -> int:
    """The smallest step, up to `longest` tokens, whose tokens are about as cheap as any can be.

    That is within `tolerance` of the least seconds per token. It lies at the end of a stair.
    """
    sizes = [size for size in cost.edges if size < longest] + [longest]
    limit = min(cost.linear_s(size) / size for size in sizes) * (1 + tolerance)
    return next(size for size in sizes if cost.linear_s(size) / size <= limit)
