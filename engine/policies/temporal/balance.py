"""Balance: decode micro-batches of equal seconds, not equal rows (docs/papers.md, section 2 d).

S micro-batches take turns, and a stage waits for the slowest of them. The time of a step depends on
the number of rows, in stairs, and on the KV that the rows read. Therefore rows are added until they
read an equal share of the KV; their number may differ from an equal share of the rows within the
same stair. If an equal share of the rows lies just beyond the end of a stair, fewer rows, up to
that end, give more rows per second; the remaining rows are left for the next micro-batch.
"""

from engine.costs.cost_model import CostModel


def most_rows(cost: CostModel, num_live: int, num_stages: int) -> int:
    """The maximum number of rows of a micro-batch that reads less than its share of the KV.

    Reading the KV of a row takes the same time in every micro-batch, so this time is left out.
    """
    share = -(-num_live // num_stages)
    lower = max((edge for edge in cost.edges if edge < share), default=0)
    if lower and lower / cost.decode_s(lower) > share / cost.decode_s(share):
        return lower
    return cost.edge(share)
