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
    model = launches.make_model("llama", fuses=False)
    counts = launches.count(model, launches.STEPS["decode"])
    layer = {part: counts[launches.LAYER, part] for part in launches.PARTS}
    # write KV, splits, their combination; q, k, v, o, gate, up, down; silu, mul; two residuals
    assert layer["attention"] == 3
    assert layer["products"] == 7
    assert layer["activation"] == 2
    assert layer["other"] == 2
    assert layer["experts"] == 0
    assert layer["norms"] > 2
    assert layer["rotary"] > 2
    prefill = launches.count(model, launches.STEPS["prefill"])
    assert prefill[launches.LAYER, "attention"] == 2


@pytest.mark.parametrize(("family", "num_norms"), [("llama", 2), ("qwen3", 4)])
def test_a_fused_layer_has_one_launch_for_each_part(family: str, num_norms: int) -> None:
    model = launches.make_model(family, fuses=True)
    counts = launches.count(model, launches.STEPS["decode"])
    layer = {part: counts[launches.LAYER, part] for part in launches.PARTS}
    assert layer["norms"] == num_norms
    assert layer["rotary"] == layer["activation"] == 1
    assert (layer["attention"], layer["products"], layer["other"]) == (3, 7, 2)


def test_a_line_says_what_is_fusable() -> None:
    cells = [
        cell.strip()
        for cell in launches.line("mixtral", "decode", fuses=False).strip("|").split("|")
    ]
    assert cells[:3] == ["mixtral", "decode", "no"]
    parts = dict(zip(launches.PARTS, map(int, cells[3:10]), strict=True))
    assert parts["experts"] > 0
    assert int(cells[10]) == sum(parts.values())
    fusable = parts["norms"] + parts["rotary"] + parts["activation"]
    assert cells[11] == f"{fusable / int(cells[10]):.0%}"


def test_the_model_s_hooks_are_removed() -> None:
    model, found = nn.Linear(2, 2), launches.Launches()
    with found.watching(model, {model: 0}):
        model(torch.ones(1, 2))
    assert found.counts[0, "products"] == 1
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
