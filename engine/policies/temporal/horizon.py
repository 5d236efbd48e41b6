"""Horizon: how far ahead the KV of an admitted sequence must last.

A sequence that is pre-empted loses no token, only its KV, which must be fed again at the price of
prefill tokens. If until then it has filled a row that would have stayed empty, each of its tokens
has saved what a token costs in steps as small as these. After

    length * ratio / (1 - ratio)     rounds, where ratio = price of a prefill token / of a decode,

the saving has paid for the feeding, and what comes later need not be planned. Small decode
micro-batches, whose tokens are dear, thus admit boldly; near the knee a decode costs as much as a
prefill token, nothing pays for a pre-emption, and the plan must hold to the end. The setting's
part of it is less than all because those pre-empted are the youngest, which have the least to lose.
"""

from engine.costs.cost_model import CostModel


def rounds_to_pay(cost: CostModel, num_rows: int, length: int, prefill_s: float) -> float:
    """Rounds after which a row of a sequence of `length` tokens has paid for feeding it again.

    `prefill_s` are seconds of a prefill token; infinite where it never pays.
    """
    ratio = prefill_s * num_rows / cost.decode_s(num_rows)
    return length * ratio / (1 - ratio) if ratio < 1 else float("inf")
