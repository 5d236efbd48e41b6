"""Quantised checkpoints in stages, against transformers on the same files."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from tests.kernels import shared_library
from tests.quantised import (
    claim,
    write_compressed_tensors,
    write_fp8,
    write_mxfp4,
    write_with_library,
)
from tests.workers.model.test_stage_model import forward, make_caches, make_stages, mixed_steps
from tests.workers.world import Ground
from workers.model import quantisation
from workers.model.fused.native import NativeOperations
from workers.model.quantisation import is_plain, method_of

Write = Callable[[Path], Path]
LIBRARIES = ("torchao int8", "torchao fp8", "torchao int8 dynamic")
LIBRARIES += ("bitsandbytes 4-bit", "bitsandbytes 8-bit")
# How far the logits of two stages may be from transformers', as part of the largest: rounding of
# fp32; of bf16; and of activations in 8 bits, where a last bit decides on a whole step.
FP32, BF16, DYNAMIC = 1e-5, 0.05, 0.3
KINDS: dict[str, tuple[Write, float]] = {
    "compressed-tensors W8A16": (partial(write_compressed_tensors, kind="W8A16"), FP32),
    "compressed-tensors W4A16": (partial(write_compressed_tensors, kind="W4A16"), FP32),
    "compressed-tensors W8A8": (partial(write_compressed_tensors, kind="W8A8"), DYNAMIC),
    "compressed-tensors FP8": (partial(write_compressed_tensors, kind="FP8"), DYNAMIC),
    "fine-grained fp8": (write_fp8, BF16),
    "mxfp4": (write_mxfp4, 0.3),  # rounding sends a token to another expert
    **{kind: (partial(write_with_library, kind=kind), DYNAMIC) for kind in LIBRARIES},
}


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize("kind", KINDS)
def test_stages_of_a_quantised_model_are_transformers_model(kind: str, tmp_path: Path) -> None:
    write, close = KINDS[kind]
    path = write(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(
        path, attn_implementation="eager", device_map={"": "cpu"}
    ).eval()
    library = shared_library()
    pipelines = [make_stages(path, split) for split in ((4,), (2, 2))]
    for stages in pipelines:
        for stage in stages:
            stage.fuse(NativeOperations(library))
            stage.pack_linears(library)
    grounds = [Ground(4), Ground(4)]
    caches = [make_caches(p, g) for p, g in zip(pipelines, grounds, strict=True)]
    for one, two in zip(*map(mixed_steps, grounds), strict=True):
        logits, others = (
            forward(p, c, batch)
            for p, c, (_, batch) in zip(pipelines, caches, (one, two), strict=True)
        )
        assert torch.equal(logits, others)
        for got, sequence in zip(logits, one[0], strict=True):
            with torch.inference_mode():
                want = reference(torch.tensor([sequence.token_ids])).logits[0, -1]
            assert (got - want).abs().max() / want.abs().max() < close


@pytest.mark.parametrize(
    ("method", "packages"),
    [
        ("gptq", ["optimum", "gptqmodel"]),
        ("awq", ["gptqmodel"]),
        ("bitsandbytes", ["bitsandbytes"]),
        ("torchao", ["torchao"]),
        ("compressed-tensors", ["compressed-tensors"]),
    ],
)
def test_packages_that_are_missing_are_named_with_the_command(
    method: str, packages: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"with {method}.*pip install {' '.join(packages)}$"):
        make_stages(claim(tmp_path, method), (2, 2))


def test_a_quantised_checkpoint_has_a_method() -> None:
    assert method_of(AutoConfig.for_model("llama")) is None
    for values, method in (
        ({"quant_method": "fp8"}, "fp8"),
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes_8bit"}, "bitsandbytes"),
    ):
        assert method_of(AutoConfig.for_model("llama", quantization_config=values)) == method


def test_a_precision_that_transformers_does_not_give_is_refused(tmp_path: Path) -> None:
    path = write_fp8(tmp_path)
    with pytest.raises(ValueError, match=r"keeps its other weights in .*--dtype float32"):
        make_stages(path, (2, 2), dtype="float32")


def test_layers_that_do_more_than_torch_s_are_not_plain() -> None:
    assert is_plain(nn.Linear(2, 2))
    assert not is_plain(nn.Embedding(2, 2))
    wrapped, hooked, compressed = (nn.Linear(2, 2) for _ in range(3))
    wrapped.forward = lambda x: x  # type: ignore[method-assign]
    hooked.register_forward_pre_hook(lambda *_: None)
    del compressed.weight
    assert not any(is_plain(layer) for layer in (wrapped, hooked, compressed))

    class Packed(nn.Parameter):
        pass

    packed = nn.Linear(2, 2)
    packed.weight = Packed(torch.ones(2, 2))
    assert not is_plain(packed)
