"""The gated MLP with one kernel for the activation, and on CPUs one product for gate and up.

down(activation(gate(x)) * up(x)), as in Llama, Qwen, Mistral, Gemma and most families since.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from workers.kernels.library import TYPES
from workers.model.fused.operations import FusedOperations
from workers.model.fused.same import is_same, random_values, result_of
from workers.model.quantisation import is_plain

# As elementwise.cpp numbers them.
ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    0: nn.functional.silu,
    1: lambda x: nn.functional.gelu(x, approximate="tanh"),
}
PARTS = ("gate_proj", "up_proj", "down_proj")


class GatedMlp(nn.Module):
    """`products` give what `FusedOperations.gate` takes: gate and up, in one tensor or in two."""

    def __init__(
        self,
        products: Sequence[nn.Module],
        down: nn.Module,
        activation: int,
        operations: FusedOperations,
    ) -> None:
        super().__init__()
        self.gate, self.up = products[0], products[1] if products[1:] else None
        self.down = down
        self._activation, self._operations = activation, operations

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., hidden]` for `[..., hidden]`."""
        up = self.up
        products = (self.gate(x),) if up is None else (self.gate(x), up(x))
        down: Tensor = self.down(self._operations.gate(products, self._activation))
        return down


def fused(mlp: nn.Module, operations: FusedOperations) -> GatedMlp | None:
    """The same in fewer steps, or None if the module is not such an MLP.

    With `joins_products`, `mlp` loses the weights of gate and up.
    """
    children = dict(mlp.named_children())
    parts = [children.get(name) for name in PARTS]
    activation = _activation(children.get("act_fn"))
    gate, up, down = parts
    if (
        activation is None
        or not isinstance(gate, nn.Linear)
        or not isinstance(up, nn.Linear)
        or not isinstance(down, nn.Linear)
        or any(type(part) is not nn.Linear or not is_plain(part) for part in parts)
        or len(list(mlp.parameters())) != sum(len(list(p.parameters())) for p in (gate, up, down))
        or gate.weight.dtype not in TYPES
        or gate.weight.shape != up.weight.shape
        or (gate.bias is None) != (up.bias is None)
    ):
        return None
    products = [_joined(gate, up)] if operations.joins_products else [gate, up]
    made = GatedMlp(products, down, activation, operations)
    rows = random_values(1, 5, gate.in_features, device=gate.weight.device).to(gate.weight.dtype)
    if not is_same(made(rows), result_of(mlp, rows)):
        return None
    if operations.joins_products:
        del gate.weight, up.weight  # frees them now, and not only when all MLPs are joined
    return made


def _activation(module: nn.Module | None) -> int | None:
    """The number of an activation in `ACTIVATIONS`, recognised by its values."""
    if module is None or list(module.parameters()):
        return None
    values = torch.linspace(-12, 12, 481)
    wanted = result_of(module, values)
    return next(
        (n for n, function in ACTIVATIONS.items() if is_same(function(values), wanted)), None
    )


def _joined(gate: nn.Linear, up: nn.Linear) -> nn.Linear:
    """One layer with the outputs of both."""
    with torch.device("meta"):
        both = nn.Linear(gate.in_features, 2 * gate.out_features, bias=gate.bias is not None)
    both.weight = nn.Parameter(torch.cat([gate.weight, up.weight]), requires_grad=False)
    if gate.bias is not None:
        both.bias = nn.Parameter(torch.cat([gate.bias, up.bias]), requires_grad=False)
    return both
