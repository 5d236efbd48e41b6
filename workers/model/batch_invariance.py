"""Batch invariance: a row's logits do not depend on the other rows of its steps.

A product's rounding may depend on its number of rows, because libraries have other kernels for
other sizes. It does not in our packed linear layers, nor in oneDNN's 16-bit products without AMX,
if they have at least two rows (`StageModel._padded`, `experts`). It does with AMX, in torch's fp32
products (with 8 of the counts from 2 to 11 results differ from those with 300), and on GPUs.
"""

import os
import platform
from collections.abc import MutableMapping

import torch
from torch import nn
from transformers import PreTrainedModel

from configs.config import EngineConfig
from configs.schema.scheduler import SHORTEST_LIMIT
from workers.model.packed.experts import PACKED
from workers.model.packed.linears import ONEDNN_SUPPORT, PackedLinear

# oneDNN reads the first of these that is set, once, at its first product.
LIMIT_VARIABLES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# With this limit 0 of 4.3 M logits of a 135 M model on a CPU with AMX depended on the batch.
INVARIANT_LIMIT = "AVX512_CORE_BF16"
LIMITS_WITHOUT_AMX = {
    "SSE41",
    "AVX",
    "AVX2",
    "AVX2_VNNI",
    "AVX2_VNNI_2",
    "AVX512_CORE",
    "AVX512_CORE_VNNI",
    INVARIANT_LIMIT,
    "AVX512_CORE_FP16",
    "AVX10_1_512",
}


def limit_onednn(environ: MutableMapping[str, str] = os.environ) -> None:
    """Keep oneDNN from using AMX in this process and its children, unless the user set a limit.

    Call it before oneDNN's first product. On a CPU without AMX the limit changes nothing.
    """
    if onednn_limit(environ) is None:
        environ[LIMIT_VARIABLES[0]] = INVARIANT_LIMIT


def onednn_limit(environ: MutableMapping[str, str] = os.environ) -> str | None:
    """The instructions that oneDNN is limited to by the environment, in its own words, or None."""
    return next((environ[name].upper() for name in LIMIT_VARIABLES if environ.get(name)), None)


def may_use_amx() -> bool:
    """Whether the CPU has AMX, and oneDNN may use it."""
    return has_amx() and onednn_limit() not in LIMITS_WITHOUT_AMX


def has_amx() -> bool:
    """Whether the CPU has AMX, or torch does not say."""
    is_supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # private
    return is_supported is None or bool(is_supported())


def obstacle(
    config: EngineConfig,
    device: torch.device,
    model: PreTrainedModel | None = None,
    attention: str = "",
) -> str | None:
    """Why answers may depend on the batch, or None if they do not.

    `attention` is the name of the attention backend. Without a model, only what is known before it
    is loaded is looked at.
    """
    if device.type != "cpu":
        return "batch invariance is not available on GPUs yet"
    longest = config.scheduler.max_num_batched_tokens
    if longest < SHORTEST_LIMIT:
        return f"steps of {longest} tokens cut prompts into single tokens (max_num_batched_tokens)"
    num_ranks = config.pipeline.tensor_parallel_size
    if num_ranks > 2:
        return f"gloo adds up {num_ranks} ranks in an order that depends on the number of rows"
    found = None if model is None else _obstacle_in(model)
    if found is None and attention not in ("", "native"):
        found = _obstacle_in_cuts(config, attention)
    return found


def _obstacle_in_cuts(config: EngineConfig, attention: str) -> str | None:
    """Why prompts may be cut at places that depend on other requests, or None.

    It matters for attention that rounds a prompt differently where it is cut.
    """
    if config.scheduler.policy != "td-pipe":
        cause = f"policy {config.scheduler.policy} cuts it to fit the other rows (see --policy)"
    elif config.cache.enable_prefix_caching:
        cause = "a cached prefix cuts it (see --no-enable-prefix-caching)"
    else:
        return None
    return f"{attention} attention rounds a prompt differently where {cause}"


def _obstacle_in(model: PreTrainedModel) -> str | None:
    """Why the products of a model on a CPU may depend on the batch, or None."""
    if getattr(model.config, "quantization_config", None) is not None:
        return "quantised weights have products of their own"
    foreign = _torch_products(model)
    if not foreign:
        return None
    wide = {(name, dtype) for name, dtype in foreign if dtype not in ONEDNN_SUPPORT}
    if wide:
        names = ", ".join(sorted(name for name, _ in wide))
        dtypes = "/".join(sorted({str(dtype).removeprefix("torch.") for _, dtype in wide}))
        return f"torch's {dtypes} products depend on it ({names})"
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"torch's products were not examined on {platform.machine()}"
    if has_amx() and any(dtype == torch.float16 for _, dtype in foreign):
        return "oneDNN's fp16 products were not examined on CPUs with AMX"
    if may_use_amx():
        limit = onednn_limit()
        allowed = f", which {limit} allows" if limit else ""
        return f"oneDNN's products depend on it with AMX{allowed} (see --batch-invariant)"
    return None


def _torch_products(model: nn.Module) -> set[tuple[str, torch.dtype]]:
    """The kinds of modules with a matrix that is not in packed layers of ours, and its type."""
    return {
        (type(module).__name__, parameter.dtype)
        for module in model.modules()
        if not isinstance(module, PackedLinear | nn.Embedding) and not hasattr(module, PACKED)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() > 1
    }
