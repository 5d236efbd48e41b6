"""RMSNorm as one kernel: every form of transformers' families, and nothing else."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.llama4.modeling_llama4 import Llama4TextRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from workers.model.fused import norms
from workers.model.fused.native import NativeOperations
from workers.model.fused.operations import FusedOperations
from workers.model.fused.same import is_same

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KNOWN: tuple[Any, ...] = (
    LlamaRMSNorm,
    Gemma3RMSNorm,
    Llama4TextRMSNorm,
    Olmo2RMSNorm,
    nn.RMSNorm,
)


def make(kind: Any, width: int, dtype: torch.dtype) -> nn.Module:
    """A norm of this class with random weights."""
    norm: nn.Module = kind(width, 1e-5).requires_grad_(False)
    norm.weight.data = torch.randn(width).to(dtype)  # type: ignore[union-attr]
    return norm


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 64, 100, 2048])
@pytest.mark.parametrize("kind", KNOWN)
def test_a_fused_norm_gives_the_results_of_the_family(
    operations: FusedOperations, kind: Any, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    norm = make(kind, width, dtype)
    fused = norms.fused(norm, operations)
    assert fused is not None
    for size in [(1, width), (1, 9, width), (1, 5, 4, width), (0, width)]:
        rows = (4 * torch.randn(size)).to(dtype)
        got = fused(rows)
        assert got.shape == rows.shape
        assert not rows.numel() or is_same(got, norm(rows))


def test_rows_that_are_not_contiguous_are_read_by_their_strides(
    operations: FusedOperations,
) -> None:
    norm = make(LlamaRMSNorm, 32, torch.float32)
    fused = norms.fused(norm, operations)
    assert fused is not None
    rows = torch.randn(1, 6, 3, 64)[..., ::2].transpose(1, 2)
    torch.testing.assert_close(fused(rows), norm(rows))


def test_a_row_has_the_same_result_in_any_batch(operations: FusedOperations) -> None:
    fused = norms.fused(make(LlamaRMSNorm, 300, torch.bfloat16), operations)
    assert fused is not None
    # Enough for several threads; the interpreter takes milliseconds for each row.
    count = 200 if isinstance(operations, NativeOperations) else 9
    rows = torch.randn(count, 300).bfloat16()
    assert torch.equal(fused(rows), torch.cat([fused(row[None]) for row in rows]))


class DoubledRMSNorm(LlamaRMSNorm):
    """A norm that looks like Llama's, and computes something else."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Twice the result."""
        doubled: Tensor = 2 * super().forward(hidden_states)
        return doubled


class BiasedRMSNorm(LlamaRMSNorm):
    """A norm with a parameter that the kernel does not know."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__(width, eps)
        self.bias = nn.Parameter(torch.zeros(width))


class OutsideRMSNorm(LlamaRMSNorm):
    """A norm with epsilon outside the root, which only small rows show."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """x / (rms(x) + epsilon) * weight."""
        rms = hidden_states.pow(2).mean(-1, keepdim=True).sqrt()
        normalised: Tensor = self.weight * (hidden_states / (rms + self.variance_epsilon))
        return normalised


class FailingRMSNorm(LlamaRMSNorm):
    """A norm that is called in another way."""

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """The gated rows."""
        return hidden_states * gate


def test_rows_of_another_type_than_the_weights_go_to_the_original(
    operations: FusedOperations,
) -> None:
    norm = make(Olmo2RMSNorm, 64, torch.float32)  # as GPT-OSS keeps its norms with fp16
    fused = norms.fused(norm, operations)
    assert fused is not None
    rows = torch.randn(1, 5, 64).half()
    assert fused(rows).dtype == torch.float16
    assert torch.equal(fused(rows), norm(rows))


@pytest.mark.parametrize(
    "kind", [DoubledRMSNorm, BiasedRMSNorm, OutsideRMSNorm, FailingRMSNorm, nn.LayerNorm]
)
def test_other_norms_stay_as_they_are(operations: FusedOperations, kind: Any) -> None:
    assert norms.fused(make(kind, 64, torch.float32), operations) is None


def test_types_without_kernels_stay_as_they_are(operations: FusedOperations) -> None:
    assert norms.fused(make(LlamaRMSNorm, 8, torch.float64), operations) is None
