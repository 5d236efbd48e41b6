"""Experts on a CPU: packed ones, and a rule for those of torch.

transformers calls one function for all experts of a layer. Packed experts are computed by the
library of CPU kernels, where that is worth it (`linears.are_worth_packing`): a row's result does
not depend on the rows that were routed to the same expert. On one core with AVX2, 32 experts of
512 x 256, 4 per token: in bf16 2.7, 4.4 and 5.9 times as fast as torch's with 2, 32 and 256 tokens,
in fp32 2.1, 1.8 and 1.2 times.

With torch's products, an expert never gets a batch with a single row. On a CPU without bf16
instructions, a product with a single row runs in a different kernel (gemv), which rounds some
results differently: 59 of 1,024,000 with 256 inputs each. The result of a token would then depend
on whether another token of the step was routed to the same expert.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ExpertsInterface, grouped_mm_experts_forward

from workers.kernels.library import TYPES, Library
from workers.model.fused.same import is_same, random_values
from workers.model.packed.linears import Panels

NAME = "tdpipe_experts"
PACKED = "tdpipe_packed"  # the attribute of a module whose experts are packed
CHECKED_TOKENS = 9


def forward(
    module: nn.Module,
    hidden_states: Tensor,  # [tokens, hidden]
    top_k_index: Tensor,  # [tokens, experts of each]
    top_k_weights: Tensor,  # [tokens, experts of each]
) -> Tensor:
    """Implement transformers' experts interface; returns `[tokens, hidden]`."""
    packed: PackedExperts | None = getattr(module, PACKED, None)
    if packed is None:
        return at_least_two_rows(module, hidden_states, top_k_index, top_k_weights)
    return packed.forward(hidden_states, top_k_index, top_k_weights)


def at_least_two_rows(
    module: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """transformers' own products, with the only token of an expert sent twice; see `forward`."""
    num_experts: int = module.num_experts  # type: ignore[assignment]
    rows_of = torch.bincount(top_k_index.flatten(), minlength=num_experts)
    is_single = (rows_of == 1)[top_k_index].any(-1)
    count = len(hidden_states)
    rows = torch.cat([torch.arange(count), is_single.nonzero().flatten()])
    results: Tensor = grouped_mm_experts_forward(
        module, hidden_states[rows], top_k_index[rows], top_k_weights[rows]
    )
    return results[:count]


class PackedExperts:
    """The experts of one layer: two products for all of them, each over the rows of each expert."""

    def __init__(self, module: Any, library: Library) -> None:
        """`module` is of a class that transformers' `use_experts_implementation` decorates."""
        self._module, self._num_experts = module, module.num_experts
        up, down = _names(module)
        self._up = Panels(_weights(module, up), None, library)
        self._down = Panels(_weights(module, down), None, library)
        # Added to the rounded products, as in transformers.
        self._up_bias, self._down_bias = (
            getattr(module, f"{name}_bias") if module.has_bias else None for name in (up, down)
        )

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """See `forward` of this file."""
        module, (num_tokens, num_chosen) = self._module, top_k_index.shape
        experts = top_k_index.reshape(-1)
        order = experts.argsort(stable=True)
        ends = torch.bincount(experts, minlength=self._num_experts).cumsum(0)
        ordered = experts[order]
        up = self._up.multiply(hidden_states[order // num_chosen], ends)
        if self._up_bias is not None:
            up += self._up_bias[ordered]
        inner = module._apply_gate(up) if module.has_gate else module.act_fn(up)
        down = self._down.multiply(inner, ends)
        if self._down_bias is not None:
            down += self._down_bias[ordered]
        if module.has_post_expert_norm:
            down = module.post_expert_norm(down)
        weighted = down * top_k_weights.reshape(-1)[order, None]
        results = torch.empty_like(weighted)
        results[order] = weighted
        total: Tensor = results.view(num_tokens, num_chosen, -1).sum(dim=1)
        return total.to(hidden_states.dtype)


def pack(model: nn.Module, library: Library) -> int:
    """Pack the experts of all layers, and free their weights; returns the number of layers.

    The first layer of each kind is compared with transformers' own products; a kind that differs
    by more than rounding stays as it is.
    """
    same: dict[tuple[Any, ...], bool] = {}
    count = 0
    for module in _expert_modules(model):
        packed = PackedExperts(module, library)
        kind = (type(module), *((p.shape, p.dtype) for p in module.parameters()))
        if kind not in same:
            same[kind] = _gives_the_same(packed, module)
        if same[kind]:
            setattr(module, PACKED, packed)
            for name in _names(module):
                weights = getattr(module, name)
                setattr(module, name, nn.Parameter(weights.to("meta"), requires_grad=False))
            count += 1
    return count


def _expert_modules(model: nn.Module) -> Iterator[Any]:
    """The experts that call `forward` of this file.

    Those of a quantised checkpoint do not, even if transformers has dequantised them: they would
    compute with weights that are gone, and torch gives anything for them instead of an error.
    """
    for module in model.modules():
        config = vars(module).get("config")  # of its own: a module around it has the same
        if getattr(config, "_experts_implementation", None) != NAME:
            continue
        if hasattr(module, "is_transposed") and hasattr(module, "has_post_expert_norm"):
            weights = [getattr(module, name, None) for name in _names(module)]
            if all(isinstance(w, Tensor) and w.ndim == 3 and w.dtype in TYPES for w in weights):
                yield module


def _names(module: Any) -> tuple[str, str]:
    """The parameters of the two products."""
    return ("gate_up_proj" if module.has_gate else "up_proj"), "down_proj"


def _weights(module: Any, name: str) -> Tensor:
    """`[experts, outputs, inputs]`."""
    weights: Tensor = getattr(module, name)
    return weights.transpose(1, 2) if module.is_transposed else weights


def _gives_the_same(packed: PackedExperts, module: Any) -> bool:
    weights = _weights(module, _names(module)[0])
    hidden = random_values(CHECKED_TOKENS, weights.shape[2]).to(weights.dtype)
    index = torch.arange(2 * CHECKED_TOKENS).view(-1, 2) % module.num_experts
    shares = random_values(CHECKED_TOKENS, 2).abs().to(weights.dtype)
    try:
        wanted = at_least_two_rows(module, hidden, index, shares)
        return is_same(packed.forward(hidden, index, shares), wanted)
    except Exception:  # of the code of any model
        return False


ExpertsInterface.register(NAME, forward)
