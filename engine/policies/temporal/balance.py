"""Balance: decode micro-batches of equal seconds, not equal rows (docs/papers.md, section 2 d).

S micro-batches take turns, and a stage waits for the slowest of them. The seconds of a step depend
on its rows, by stairs, and on the KV that they read. Therefore rows are added up to an equal share
of the KV, and their number may differ from an equal share as long as it stays on the same stair. If
an equal share lies just beyond the end of a stair, the end gives more rows per second; the
remaining rows are left for the next micro-batch.
"""

from engine.costs.cost_model import CostModel


def most_rows(cost: CostModel, num_live: int, num_stages: int) -> int:
    """The most rows of a micro-batch, as long as it reads less than its share of the KV.

    Reading the KV of a row takes the same time in every micro-batch, so it is not compared.
    """
    share = -(-num_live // num_stages)
    lower = max((edge for edge in cost.edges if edge < share), default=0)
    if lower and lower / cost.decode_s(lower) > share / cost.decode_s(share):
        return lower
    return cost.edge(share)
