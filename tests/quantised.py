"""Small random quantised checkpoints, written by hand or by the library of their method."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, TorchAoConfig

from tests.checkpoints import make_checkpoint

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
GROUP = 32  # values that share a scale
FP8_BLOCK = 64
Tensors = dict[str, Tensor]


def write_compressed_tensors(folder: Path, kind: str) -> Path:
    """W8A16 and W4A16 (packed integers), W8A8 and FP8 (activations are quantised too)."""
    pytest.importorskip("compressed_tensors", reason="pip install compressed-tensors")
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    bits = 4 if kind == "W4A16" else 8
    format_ = {"W8A8": "int-quantized", "FP8": "float-quantized"}.get(kind, "pack-quantized")

    def quantise(name: str, weight: Tensor) -> Tensors:
        if kind == "FP8":
            scale = weight.abs().amax(-1, keepdim=True) / 448
            packed = {"weight": (weight / scale).to(torch.float8_e4m3fn)}
        else:
            grouped = weight.view(len(weight), -1, GROUP if bits == 4 else weight.shape[1])
            scale = grouped.abs().amax(-1) / (2 ** (bits - 1) - 1)
            integers = (grouped / scale[..., None]).round().view_as(weight).to(torch.int8)
            packed = {"weight": integers}
            if kind != "W8A8":
                shape = torch.tensor(weight.shape)
                packed = {"weight_packed": pack_to_int32(integers, bits), "weight_shape": shape}
        return {f"{name}.{key}": value for key, value in (packed | {"weight_scale": scale}).items()}

    weights: dict[str, Any] = {"num_bits": bits, "type": "int", "symmetric": True}
    weights |= {"strategy": "group", "group_size": GROUP} if bits == 4 else {"strategy": "channel"}
    activations = None
    if kind in ("W8A8", "FP8"):
        weights["type"] = "float" if kind == "FP8" else "int"
        activations = {**weights, "strategy": "token", "dynamic": True}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    config = {
        "quant_method": "compressed-tensors",
        "format": format_,
        "config_groups": {"group_0": scheme},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    return _quantised(make_checkpoint(folder, "llama", **SIZES), config, quantise)


def write_fp8(folder: Path) -> Path:
    """Fine-grained fp8: a scale for each square of weights, the rest in bf16."""

    def quantise(name: str, weight: Tensor) -> Tensors:
        rows, columns = weight.shape
        squares = weight.view(rows // FP8_BLOCK, FP8_BLOCK, columns // FP8_BLOCK, FP8_BLOCK)
        scale = squares.abs().amax((1, 3)) / 448
        packed = (squares / scale[:, None, :, None]).view_as(weight).to(torch.float8_e4m3fn)
        return {f"{name}.weight": packed, f"{name}.weight_scale_inv": scale}

    config = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    config |= {"weight_block_size": [FP8_BLOCK, FP8_BLOCK]}  # type: ignore[dict-item]
    return _quantised(make_checkpoint(folder, "llama", **SIZES), config, quantise, rest="bfloat16")


def write_mxfp4(folder: Path) -> Path:
    """gpt-oss with experts in mxfp4, the rest in bf16."""
    draw = torch.Generator().manual_seed(3)

    def quantise(name: str, weight: Tensor) -> Tensors:
        experts, inputs, outputs = weight.shape
        shape = (experts, outputs, inputs // 32, 16)
        return {
            f"{name}_blocks": torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8),
            f"{name}_scales": torch.randint(120, 125, shape[:3], generator=draw, dtype=torch.uint8),
        }

    model = make_checkpoint(folder, "gpt_oss", hidden_size=64, intermediate_size=64)
    others = ["model.layers.*.self_attn", "model.layers.*.mlp.router"]
    others += ["model.embed_tokens", "lm_head"]
    config = {"quant_method": "mxfp4", "modules_to_not_convert": others}
    return _quantised(model, config, quantise, rest="bfloat16", names=("_up_proj", "down_proj"))


def write_with_library(folder: Path, kind: str) -> Path:
    """bitsandbytes or torchao, quantised and saved by transformers."""
    how: Any
    dtype = torch.bfloat16
    if kind.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
        is_4bit = kind.endswith("4-bit")
        how = BitsAndBytesConfig(load_in_4bit=is_4bit, load_in_8bit=not is_4bit)
    else:
        torchao: Any = pytest.importorskip("torchao.quantization", reason="pip install torchao")
        names = {
            "torchao int8": "Int8WeightOnlyConfig",
            "torchao fp8": "Float8WeightOnlyConfig",
            "torchao int8 dynamic": "Int8DynamicActivationInt8WeightConfig",
        }
        how = TorchAoConfig(getattr(torchao, names[kind])())
    source = make_checkpoint(folder / "source", "llama", **SIZES)
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=how, dtype=dtype, device_map={"": "cpu"}
    )
    model.save_pretrained(folder / "quantised")
    return folder / "quantised"


def claim(folder: Path, method: str) -> Path:
    """A checkpoint that says that it is quantised by this method, and is not."""
    return _quantised(make_checkpoint(folder, "llama"), {"quant_method": method, "bits": 4}, None)


def _quantised(
    model: Path,
    config: dict[str, Any],
    quantise: Callable[[str, Tensor], Tensors] | None,
    *,
    rest: str = "float32",
    names: tuple[str, ...] = ("_proj.weight",),
) -> Path:
    tensors: Tensors = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if quantise is not None and name.endswith(names):
            tensors |= quantise(name.removesuffix(".weight"), weight)
        else:
            tensors[name] = weight.to(getattr(torch, rest))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        model / "model.safetensors",
        metadata={"format": "pt"},
    )
    settings = json.loads((model / "config.json").read_text())
    settings |= {"quantization_config": config, "dtype": rest}
    (model / "config.json").write_text(json.dumps(settings))
    return model
