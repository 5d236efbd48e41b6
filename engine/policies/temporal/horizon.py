"""Horizon: how far ahead KV must be planned for an admitted sequence.

A preempted sequence loses its KV but no token; its tokens must be fed again at the cost of prefill
tokens. If it has filled a row until then that would have been empty, each of its tokens has saved
the cost of a token in steps of this size. After

    length * ratio / (1 - ratio)     pipeline turns, ratio = cost of a prefill token / of a decode,

the saving has paid for the recomputation, and KV need not be planned beyond that. With small decode
micro-batches, in which tokens are expensive, many sequences are admitted. Near the knee a decode
token costs as much as a prefill token, a preemption never pays, and KV is planned to the end. The
default of `--horizon` is a quarter of these turns: preempted sequences are the youngest, which have
the fewest tokens to recompute.
"""

from engine.costs.cost_model import CostModel


def turns_to_pay(cost: CostModel, num_rows: int, length: int, prefill_s: float) -> float:
    """Pipeline turns after which a sequence of `length` tokens has paid for its recomputation.

    `num_rows` is the size of a decode micro-batch, `prefill_s` the seconds of a prefill token.
    Infinite if a preemption never pays.
    """
    ratio = prefill_s * num_rows / cost.decode_s(num_rows)
    return length * ratio / (1 - ratio) if ratio < 1 else float("inf")
