"""The gated MLP with one product for gate and up, and one kernel for the activation.

down(activation(gate(x)) * up(x)), as in Llama, Qwen, Mistral, Gemma and most families since.
"""

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor, nn

from workers.kernels.library import TYPES, GatedStep, Library
from workers.model.fused.same import is_same, random_values

# As elementwise.cpp numbers them.
ACTIVATIONS: dict[int, Callable[[Tensor], Tensor]] = {
    0: nn.functional.silu,
    1: lambda x: nn.functional.gelu(x, approximate="tanh"),
}
PARTS = ("gate_proj", "up_proj", "down_proj")


class GatedMlp(nn.Module):
    """`gate_up` computes the gate and what it multiplies, `[..., 2 x width]`."""

    def __init__(
        self, gate_up: nn.Module, down: nn.Module, activation: int, library: Library
    ) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down
        self._activation, self._library = activation, library

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., hidden]` for `[..., hidden]`."""
        both = self.gate_up(x)
        width = both.shape[-1] // 2
        out = both.new_empty(*both.shape[:-1], width)
        step = GatedStep(
            both.data_ptr(),
            out.data_ptr(),
            out.numel() // width,
            width,
            TYPES[both.dtype],
            self._activation,
            torch.get_num_threads(),
        )
        self._library.gated(ctypes.byref(step))
        down: Tensor = self.down(out)
        return down


def fused(mlp: nn.Module, library: Library) -> GatedMlp | None:
    """The same in fewer steps, or None if the module is not such an MLP."""
    children = dict(mlp.named_children())
    parts = [children.get(name) for name in PARTS]
    activation = _activation(children.get("act_fn"))
    gate, up, down = parts
    if (
        activation is None
        or not isinstance(gate, nn.Linear)
        or not isinstance(up, nn.Linear)
        or not isinstance(down, nn.Linear)
        or any(type(part) is not nn.Linear for part in parts)
        or len(list(mlp.parameters())) != sum(len(list(p.parameters())) for p in (gate, up, down))
        or gate.weight.dtype not in TYPES
        or gate.weight.shape != up.weight.shape
        or (gate.bias is None) != (up.bias is None)
    ):
        return None
    made = GatedMlp(_joined(gate, up), down, activation, library)
    rows = random_values(1, 5, gate.in_features).to(gate.weight.dtype)
    return made if is_same(made(rows), mlp(rows)) else None


def _activation(module: nn.Module | None) -> int | None:
    """The number of an activation in `ACTIVATIONS`, recognised by its values."""
    if module is None or list(module.parameters()):
        return None
    values = torch.linspace(-12, 12, 481)
    wanted = module(values)
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
