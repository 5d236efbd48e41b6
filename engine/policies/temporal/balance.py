"""Balance: how much a decode micro-batch may hold, in seconds rather than in rows (PAPERS.md,
section 2 d).

S micro-batches take turns; a stage waits for the slowest of them. A step's seconds come from its
rows, by stairs, and from the KV they read. So rows are taken up to an equal share of the KV, a few
more or less than an equal share of the rows where that stays on the stair. Where an equal share
lies just beyond the end of a stair, the end gives more rows per second; the rest is withheld for
the next micro-batch.
"""

from engine.costs.cost_model import CostModel


def most_rows(cost: CostModel, num_live: int, num_stages: int) -> int:
    """Rows up to which a micro-batch may be filled while it reads less than its share of KV.

    The KV that rows read takes the same time wherever they are: it is not in the comparison.
    """
    share = -(-num_live // num_stages)
    lower = max((edge for edge in cost.edges if edge < share), default=0)
    if lower and lower / cost.decode_s(lower) > share / cost.decode_s(share):
        return lower
    return cost.edge(share)
