"""The rotary embedding as one kernel: families' own functions, and how it takes their place."""

import importlib
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.llama import modeling_llama

from tests.workers.model.fused.broken import Broken
from workers.model.fused import rotary
from workers.model.fused.operations import FusedOperations
from workers.model.fused.rotary import FUNCTION, FusedRotary, RotaryFunctions
from workers.model.fused.same import is_same

# Families that rotate a head's halves, with the part of a head that they rotate; how they round
# differs. Cohere and GLM rotate neighbours, which the kernel does not know.
HALVES = {"llama": 1.0, "olmo2": 1.0, "qwen3": 1.0, "gpt_neox": 0.25, "phi": 1.0}
OTHERS = {"cohere": 1.0, "glm": 0.5}


def function_of(family: str) -> Any:
    """The family's own function."""
    return getattr(
        importlib.import_module(f"transformers.models.{family}.modeling_{family}"), FUNCTION
    )


def inputs(
    part: float, dtype: torch.dtype, angle_dtype: torch.dtype, dim: int = 64
) -> list[Tensor]:
    """Queries and keys as a view of the products' outputs, and angles as a family makes them."""
    tokens, rotated = 11, int(dim * part)
    q = torch.randn(1, tokens, 6, dim).to(dtype).transpose(1, 2)
    k = torch.randn(1, tokens, 2, dim).to(dtype).transpose(1, 2)
    angles = torch.outer(torch.arange(tokens) * 97.0, 0.9 ** torch.arange(rotated // 2))
    both = torch.cat([angles, angles], -1)[None]
    return [q, k, both.cos().to(angle_dtype), both.sin().to(angle_dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", HALVES | OTHERS)
def test_the_results_are_those_of_the_family(
    operations: FusedOperations, family: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    original = function_of(family)
    fused = FusedRotary(original, operations)
    given = inputs((HALVES | OTHERS)[family], dtype, dtype)
    for got, want in zip(fused(*given), original(*given), strict=True):
        assert is_same(got, want)
    assert fused.is_used == (family in HALVES)


@pytest.mark.parametrize("dim", [16, 80, 96, 128, 256])
def test_heads_of_any_size_are_rotated(operations: FusedOperations, dim: int) -> None:
    fused = FusedRotary(function_of("llama"), operations)
    given = inputs(1.0, torch.bfloat16, torch.float32, dim)
    for got, want in zip(fused(*given), function_of("llama")(*given), strict=True):
        assert is_same(got, want.to(got.dtype)) or not fused.is_used
    given = inputs(1.0, torch.float32, torch.float32, dim)
    for got, want in zip(fused(*given), function_of("llama")(*given), strict=True):
        assert is_same(got, want)
    assert fused.is_used


def test_calls_that_the_kernel_does_not_know_reach_the_original(
    operations: FusedOperations,
) -> None:
    fused = FusedRotary(function_of("llama"), operations)
    q, k, cos, sin = inputs(1.0, torch.float32, torch.float32)
    turned = [t.transpose(1, 2) for t in (q, k)]
    for got, want in zip(
        fused(*turned, cos, sin, unsqueeze_dim=2), function_of("llama")(q, k, cos, sin), strict=True
    ):
        assert torch.equal(got.transpose(1, 2), want)
    two = [torch.cat([t, t]) for t in (q, k, cos, sin)]
    assert torch.equal(fused(*two)[0], function_of("llama")(*two)[0])
    wide = [t.double() for t in (q, k, cos, sin)]
    assert torch.equal(fused(*wide)[0], function_of("llama")(*wide)[0])
    assert not fused.is_used


def test_a_family_that_rotates_one_tensor_at_a_time_keeps_its_function(
    operations: FusedOperations,
) -> None:
    def one_at_a_time(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return x * cos[:, None] + sin[:, None]

    q, _, cos, sin = inputs(1.0, torch.float32, torch.float32)
    fused = FusedRotary(one_at_a_time, operations)  # type: ignore[arg-type]
    assert torch.equal(fused(q, cos, sin), one_at_a_time(q, cos, sin))  # type: ignore[arg-type]


def test_a_first_call_within_a_capture_reaches_the_original(
    operations: FusedOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = FusedRotary(function_of("llama"), operations)
    given = inputs(1.0, torch.float32, torch.float32)
    monkeypatch.setattr(rotary, "_is_captured", lambda _: True)
    assert torch.equal(fused(*given)[0], function_of("llama")(*given)[0])
    assert not fused.is_used
    monkeypatch.undo()
    fused(*given)
    assert fused.is_used


def test_a_kernel_that_fails_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    fused = FusedRotary(function_of("llama"), Broken())
    given = inputs(1.0, torch.float32, torch.float32)
    for _ in range(2):
        assert torch.equal(fused(*given)[0], function_of("llama")(*given)[0])
    assert [record.message for record in caplog.records] == [
        "the rotary embedding is not fused: RuntimeError: no kernel"
    ]


def test_functions_are_replaced_only_within_the_context(operations: FusedOperations) -> None:
    attention = modeling_llama.LlamaRotaryEmbedding(modeling_llama.LlamaConfig())
    functions = RotaryFunctions(nn.ModuleList([attention]), operations)
    original = modeling_llama.apply_rotary_pos_emb
    with functions.replaced():
        assert isinstance(modeling_llama.apply_rotary_pos_emb, FusedRotary)
        assert not isinstance(modeling_gpt_neox.apply_rotary_pos_emb, FusedRotary)
    assert modeling_llama.apply_rotary_pos_emb is original
    with suppress(ZeroDivisionError), functions.replaced():
        raise ZeroDivisionError
    assert modeling_llama.apply_rotary_pos_emb is original


def test_a_model_without_rotary_embedding_has_nothing_to_replace(
    operations: FusedOperations,
) -> None:
    functions = RotaryFunctions(nn.Linear(2, 2), operations)
    with functions.replaced():
        assert not functions.is_used
