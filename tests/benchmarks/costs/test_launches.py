"""The counted launches: what a layer of transformers' code is known to consist of."""

import pytest
import torch
from torch import nn

from tests.workers.world import CPU

launches = pytest.importorskip("benchmarks.costs.launches")


def test_views_and_new_memory_are_no_launches() -> None:
    found = launches.Launches()
    rows = torch.ones(4, 6)
    with found:
        rows.view(2, 12).transpose(0, 1)[1:].reshape(-1)[None].expand(3, 22)  # reshape copies
        torch.empty(3, device=CPU)
        rows.to(torch.float32)  # it is already
        rows.to(torch.bfloat16)
        rows.add_(1)
        rows + 1
    assert found.counts == {(None, "other"): 4}


def test_a_layer_of_llama_is_counted_by_its_parts() -> None:
    counts = launches.count(launches.make_model("llama"), launches.STEPS["decode"])
    layer = {part: counts[launches.LAYER, part] for part in launches.PARTS}
    # write KV, splits, their combination; q, k, v, o, gate, up, down; silu, mul; two residuals
    assert layer["attention"] == 3
    assert layer["products"] == 7
    assert layer["activation"] == 2
    assert layer["other"] == 2
    assert layer["experts"] == 0
    assert layer["norms"] > 2
    assert layer["rotary"] > 2
    prefill = launches.count(launches.make_model("llama"), launches.STEPS["prefill"])
    assert prefill[launches.LAYER, "attention"] == 2


def test_a_line_says_what_is_fusable() -> None:
    cells = [cell.strip() for cell in launches.line("mixtral", "decode").strip("|").split("|")]
    assert cells[:2] == ["mixtral", "decode"]
    parts = dict(zip(launches.PARTS, map(int, cells[2:9]), strict=True))
    assert parts["experts"] > 0
    assert int(cells[9]) == sum(parts.values())
    fusable = parts["norms"] + parts["rotary"] + parts["activation"]
    assert cells[10] == f"{fusable / int(cells[9]):.0%}"


def test_the_model_s_hooks_are_removed() -> None:
    model, found = nn.Linear(2, 2), launches.Launches()
    with found.watching(model, {model: 0}):
        model(torch.ones(1, 2))
    assert found.counts[0, "products"] == 1
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
