"""Refill: decides when a decode phase ends (docs/papers.md, section 2 f).

During a decode phase, sequences finish and their blocks stay idle. A step with fewer rows than
possible loses the fraction (1 - rate now / rate after a refill) of its seconds. A switch costs
about the bubble between short and long steps. The mean cost of a cycle is lowest if the cycle ends
when its marginal rate has fallen to its mean rate. At that point, the idle blocks have cost as much
since the last refill as a switch costs.
"""

from engine.costs.cost_model import CostModel


def idle_loss_s(cost: CostModel, num_rows: int, num_more: float) -> float:
    """Seconds that a decode step of `num_rows` loses because `num_more` rows are missing."""
    step_s = cost.decode_s(num_rows)
    full_s = cost.decode_s(round(num_rows + num_more))
    gain = (num_rows + num_more) / num_rows * step_s / full_s
    return step_s * max(0.0, 1 - 1 / gain)


def switch_cost_s(cost: CostModel, num_rows: int, size: int) -> float:
    """Seconds that a stage idles between decode steps of `num_rows` and steps of `size` tokens."""
    return max(0.0, cost.linear_s(size) - cost.linear_s(num_rows))
