"""Experts on a CPU: the routing of rows to experts, and the results."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.model import experts


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
