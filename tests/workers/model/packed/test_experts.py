"""Experts on a CPU: the routing of rows to experts, and the results."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig

from tests.kernels import shared_library
from workers.model.packed import experts


def test_no_expert_has_a_single_row(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def forward(_: Any, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        seen.append(index)
        return hidden * weights.sum(-1, keepdim=True)

    monkeypatch.setattr(experts, "grouped_mm_experts_forward", forward)
    hidden = torch.arange(8.0).reshape(4, 2)
    index = torch.tensor([[0, 1], [0, 2], [3, 2], [0, 2]])  # 1 and 3 have one row each
    weights = torch.full((4, 2), 0.5)
    module: Any = SimpleNamespace(num_experts=5)
    assert torch.equal(experts.at_least_two_rows(module, hidden, index, weights), hidden)
    (sent,) = seen
    assert sent.tolist() == [*index.tolist(), [0, 1], [3, 2]]
    assert 1 not in torch.bincount(sent.flatten())


def make_experts(family: str, dtype: torch.dtype) -> Any:
    """The experts of one layer, with random weights."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 48, "num_attention_heads": 4, "num_experts": 6, "num_local_experts": 6}
    widths = {"intermediate_size": 40, "moe_intermediate_size": 40}
    config = AutoConfig.for_model(family, **sizes, **widths, num_experts_per_tok=2)
    config._experts_implementation = experts.NAME
    kind = getattr(
        importlib.import_module(f"transformers.models.{family}.modeling_{family}"), FAMILIES[family]
    )
    module = kind(config).to(dtype).requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(std=0.2)
    return module


FAMILIES = {
    "mixtral": "MixtralExperts",
    "qwen3_moe": "Qwen3MoeExperts",
    "gpt_oss": "GptOssExperts",  # transposed weights, a bias, and a gate of its own
}


def routed(num_tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, two different experts for each token, and their shares."""
    make = torch.Generator().manual_seed(num_tokens)
    index = torch.rand(num_tokens, 6, generator=make).argsort(-1)[:, :2]
    shares = torch.rand(num_tokens, 2, generator=make)
    return torch.randn(num_tokens, 48, generator=make).to(dtype), index, shares.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_experts_give_the_results_of_the_family(family: str, dtype: torch.dtype) -> None:
    module = make_experts(family, dtype)
    given = [routed(count, dtype) for count in (1, 2, 7, 100)]
    wanted = [module(*inputs) for inputs in given]
    assert experts.pack(nn.ModuleList([module]), shared_library()) == 1
    assert module.down_proj.is_meta
    for inputs, want in zip(given, wanted, strict=True):
        got = module(*inputs)
        assert got.dtype == want.dtype
        off = (got.float() - want.float()).abs().max() / want.float().abs().max()
        assert off <= {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_token_has_the_same_result_in_any_batch(dtype: torch.dtype) -> None:
    module = make_experts("mixtral", dtype)
    assert experts.pack(nn.ModuleList([module]), shared_library()) == 1
    hidden, index, shares = routed(60, dtype)
    whole = module(hidden, index, shares)
    for begin, end in ((0, 1), (0, 2), (5, 12), (20, 60)):
        part = module(hidden[begin:end], index[begin:end], shares[begin:end])
        assert torch.equal(part, whole[begin:end])


class Once(nn.Module):
    """A norm that changes its result with each call."""

    calls = 0

    def forward(self, rows: Tensor) -> Tensor:
        """The rows, times the number of calls so far."""
        self.calls += 1
        return rows * self.calls


def test_experts_that_compute_something_else_stay_as_they_are() -> None:
    module = make_experts("mixtral", torch.float32)
    module.has_post_expert_norm = True
    module.post_expert_norm = Once()  # as if the packed ones computed something else
    assert experts.pack(nn.ModuleList([module, nn.Linear(2, 2)]), shared_library()) == 0
    assert not module.down_proj.is_meta
    wide = make_experts("mixtral", torch.float64)
    assert experts.pack(nn.ModuleList([wide]), shared_library()) == 0
