"""Horizon: determines how far ahead KV must be planned for an admitted sequence.

A preempted sequence loses its KV but no token; its tokens must be fed again at the cost of prefill
tokens. If it has meanwhile filled a row that would have been empty, each of its tokens has saved
the cost of a decode token at this step size. With

    ratio = cost of a prefill token / cost of a decode token,

the saving pays for the recomputation after length * ratio / (1 - ratio) pipeline turns, and KV need
not be planned further ahead. With small decode micro-batches, in which tokens are expensive, many
sequences are admitted. Near the knee, a decode token costs as much as a prefill token, so a
preemption never pays for itself, and KV is planned to the end of the sequence. The default of
`--horizon` is a sixteenth of these turns, because preempted sequences are the youngest and have the
fewest tokens to recompute, and because most of these tokens fit into the rest of a stair for free.
"""

from engine.costs.cost_model import CostModel


def turns_to_pay(cost: CostModel, num_rows: int, length: int, prefill_s: float) -> float:
    """Pipeline turns after which a sequence of `length` tokens has paid for its recomputation.

    `num_rows` is the size of a decode micro-batch, `prefill_s` the seconds of a prefill token.
    The result is infinite if a preemption never pays for itself.
    """
    ratio = prefill_s * num_rows / cost.decode_s(num_rows)
    return length * ratio / (1 - ratio) if ratio < 1 else float("inf")
