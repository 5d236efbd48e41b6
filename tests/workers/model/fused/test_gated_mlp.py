"""The gated MLP in fewer steps: the family's own results, or the family's own module."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaMLP

from tests.kernels import shared_library
from workers.model.fused import gated_mlp
from workers.model.fused.native import NativeOperations
from workers.model.fused.operations import FusedOperations
from workers.model.fused.replace import fuse
from workers.model.fused.same import is_same
from workers.model.packed import linears


def make(
    activation: str = "silu", *, dtype: torch.dtype = torch.float32, bias: bool = False
) -> Any:
    """An MLP of the Llama family with random weights."""
    torch.manual_seed(1)
    config = LlamaConfig(
        hidden_size=48,
        num_attention_heads=4,
        intermediate_size=100,
        hidden_act=activation,
        mlp_bias=bias,
    )
    return LlamaMLP(config).to(dtype).requires_grad_(False)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu_pytorch_tanh"])
def test_a_fused_mlp_gives_the_results_of_the_family(
    operations: FusedOperations, activation: str, dtype: torch.dtype, *, bias: bool
) -> None:
    mlp = make(activation, dtype=dtype, bias=bias)
    fused = gated_mlp.fused(deepcopy(mlp), operations)
    assert fused is not None
    # Enough for several threads; the interpreter takes milliseconds for each row.
    many = 200 if isinstance(operations, NativeOperations) else 20
    for size in [(1, 48), (1, 13, 48), (1, many, 48)]:
        rows = (3 * torch.randn(size)).to(dtype)
        assert is_same(fused(rows), mlp(rows))


def test_large_and_small_gates_are_activated_as_by_torch(operations: FusedOperations) -> None:
    mlp = make()
    fused = gated_mlp.fused(deepcopy(mlp), operations)
    assert fused is not None
    for scale in (1e-6, 1e3, 1e15):
        rows = scale * torch.randn(5, 48)
        torch.testing.assert_close(fused(rows), mlp(rows), rtol=1e-5, atol=1e-5 * scale**2)


class ScaledMlp(LlamaMLP):
    """An MLP with a multiplier, as Falcon-H1 has one."""

    def forward(self, x: Tensor) -> Tensor:
        """Half the result."""
        half: Tensor = super().forward(x) / 2
        return half


class MlpOfTwo(LlamaMLP):
    """An MLP that is called with a second argument."""

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        """The result beside the residual."""
        beside: Tensor = super().forward(x) + residual
        return beside


def test_the_weights_of_a_joined_mlp_are_not_kept_twice() -> None:
    mlp = make()
    gate = mlp.gate_proj
    assert gated_mlp.fused(mlp, NativeOperations(shared_library())) is not None
    assert not list(gate.parameters())


def test_mlps_of_another_form_stay_as_they_are(operations: FusedOperations) -> None:
    config = LlamaConfig(hidden_size=48, num_attention_heads=4, intermediate_size=100)
    assert gated_mlp.fused(ScaledMlp(config).requires_grad_(False), operations) is None
    assert gated_mlp.fused(MlpOfTwo(config).requires_grad_(False), operations) is None
    assert gated_mlp.fused(make("relu"), operations) is None
    assert gated_mlp.fused(make(dtype=torch.float64), operations) is None
    quantised = make()
    quantised.up_proj = nn.Sequential(quantised.up_proj)
    assert gated_mlp.fused(quantised, operations) is None
    with_more = make()
    with_more.scale = nn.Parameter(torch.ones(1))
    assert gated_mlp.fused(with_more, operations) is None


def test_a_model_is_fused_once_and_then_packed() -> None:
    library, shared = shared_library(), make()
    model = nn.ModuleList([shared, nn.ModuleDict({"again": shared}), make("relu")])
    rows = torch.randn(4, 48)
    want = shared(rows)
    assert fuse(model, NativeOperations(library)) == {"GatedMlp": 1}
    assert model[0] is model[1]["again"]  # type: ignore[index]
    assert linears.pack(model, library) == 5
    assert is_same(model[0](rows), want)
