"""Refill: when does a decode phase end? (PAPERS.md, section 2 f)

While a decode phase goes on, sequences finish and the blocks they leave lie idle. A step with fewer
rows than could be there loses the part (1 - rate now / rate when refilled) of its seconds. A switch
costs about the bubble between short and long steps. A cycle is cheapest on average when it ends as
its marginal rate has fallen to its mean rate, which is when what the idle blocks have cost since
the last refill equals what a switch costs.
"""

from engine.costs.cost_model import CostModel


def idle_loss_s(cost: CostModel, num_rows: int, num_more: float) -> float:
    """Seconds that a decode step of `num_rows` loses because `num_more` rows are not there."""
    step_s = cost.decode_s(num_rows)
    full_s = cost.decode_s(round(num_rows + num_more))
    gain = (num_rows + num_more) / num_rows * step_s / full_s
    return step_s * max(0.0, 1 - 1 / gain)


def switch_cost_s(cost: CostModel, num_rows: int, size: int) -> float:
    """Seconds that a stage idles between decode steps of `num_rows` and steps of `size` tokens."""
    return max(0.0, cost.linear_s(size) - cost.linear_s(num_rows))
