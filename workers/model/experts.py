"""Experts on a CPU: an expert never gets a batch with a single row.

On a CPU without bf16 instructions, a product with a single row runs in a different kernel (gemv),
which rounds some results differently: 59 of 1,024,000 with 256 inputs each. The result of a token
would then depend on whether another token of the step was routed to the same expert.
"""

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

NAME = "tdpipe_at_least_two_rows"


def at_least_two_rows(
    module: nn.Module,
    hidden_states: Tensor,  # [tokens, hidden]
    top_k_index: Tensor,  # [tokens, experts of each]
    top_k_weights: Tensor,  # [tokens, experts of each]
) -> Tensor:
    """Implement transformers' experts interface; the only token of an expert is sent twice.

    Returns `[tokens, hidden]`.
    """
    num_experts: int = module.num_experts  # type: ignore[assignment]
    rows_of = torch.bincount(top_k_index.flatten(), minlength=num_experts)
    is_single = (rows_of == 1)[top_k_index].any(-1)
    count = len(hidden_states)
    rows = torch.cat([torch.arange(count), is_single.nonzero().flatten()])
    results: Tensor = grouped_mm_experts_forward(
        module, hidden_states[rows], top_k_index[rows], top_k_weights[rows]
    )
    return results[:count]


ExpertsInterface.register(NAME, at_least_two_rows)
