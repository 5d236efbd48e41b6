"""Quantised checkpoints: what they need, and a model that is ready before its first forward."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

# Modules that transformers imports for a method, and the packages they come in. transformers names
# some of them only, one at a time, or fails with a NameError.
REQUIREMENTS: dict[str, dict[str, str]] = {
    "aqlm": {"aqlm": "aqlm"},
    "awq": {"gptqmodel": "gptqmodel"},
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "hqq": {"hqq": "hqq"},
    "quanto": {"optimum.quanto": "optimum-quanto"},
    "torchao": {"torchao": "torchao"},
}


def method_of(config: PretrainedConfig) -> str | None:
    """The method by which the checkpoint is quantised, or None."""
    found: Any = getattr(config, "quantization_config", None)
    if found is None:
        return None
    values = found if isinstance(found, dict) else found.to_dict()
    method = values.get("quant_method") or "bitsandbytes"  # old ones have only load_in_4bit
    return str(getattr(method, "value", method)).removesuffix("_4bit").removesuffix("_8bit")


def check_requirements(config: PretrainedConfig) -> None:
    """Raise `ValueError` if packages for the checkpoint's method are not installed."""
    method = method_of(config) or ""
    lacking = [
        package
        for module, package in REQUIREMENTS.get(method, {}).items()
        if not _is_installed(module)
    ]
    if lacking:
        raise ValueError(
            f"the checkpoint is quantised with {method}, which transformers reads with packages "
            f"that are not installed: pip install {' '.join(lacking)}"
        )


def check_dtype(model: PreTrainedModel, dtype: torch.dtype | str) -> None:
    """Raise `ValueError` if transformers has not given a quantised model the dtype asked for.

    It leaves the weights that are not quantised as they are, and fails in the first product.
    """
    if dtype != "auto" and model.dtype != dtype:
        raise ValueError(
            f"the checkpoint is quantised, and transformers keeps its other weights in "
            f"{model.dtype}: it cannot be served with --dtype {str(dtype).removeprefix('torch.')}"
        )


def decompress(model: PreTrainedModel) -> None:
    """Decompress a model of compressed-tensors, which would do it in a hook at the first forward.

    The hook is the whole model's, and a stage may call a part of it; and layers are replaced before
    the first forward.
    """
    compressor = getattr(getattr(model, "hf_quantizer", None), "compressor", None)
    if compressor is not None and hasattr(model, "ct_decompress_hook"):
        compressor.decompress_model(model)


def is_plain(layer: nn.Module) -> bool:
    """Whether the layer is a linear layer of torch's or transformers', and nothing else.

    Quantised layers may be of the same class, with a tensor of another class (torchao), another
    forward (compressed-tensors) or hooks.
    """
    return (
        type(layer) in (nn.Linear, Conv1D)
        and type(layer._parameters.get("weight")) is nn.Parameter
        and "forward" not in vars(layer)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False
