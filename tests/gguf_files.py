"""Small random GGUF files, written by the package gguf from checkpoints of `tests.checkpoints`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig

from configs.schema.model import DEMO_MODEL

LAYERS, HIDDEN, HEADS, KV_HEADS, MLP = 4, 128, 4, 2, 256
_KV = HIDDEN // HEADS * KV_HEADS
# A layer's tensors; one number is a norm's width.
_SHAPES: dict[str, tuple[int, ...]] = {
    "attn_norm": (HIDDEN,),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (_KV, HIDDEN),
    "attn_v": (_KV, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
    "ffn_norm": (HIDDEN,),
    "ffn_gate": (MLP, HIDDEN),
    "ffn_up": (MLP, HIDDEN),
    "ffn_down": (HIDDEN, MLP),
}


def write_gguf(
    path: Path, kind: str = "Q8_0", *, without: str = "", settings: Mapping[str, Any] | None = None
) -> Path:
    """A Llama with the demo model's vocabulary; weights are of this kind of ggml's.

    `without` names a tensor that is left out. Skips the test where gguf is not installed.
    """
    gguf = pytest.importorskip("gguf", reason="pip install gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    for key, value in (settings or {}).items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(key, value)
    vocabulary = _add_vocabulary(writer, gguf)
    type_ = getattr(gguf.GGMLQuantizationType, kind)
    for name, values in _weights(vocabulary).items():
        if name == without:
            continue
        if values.ndim == 1:
            writer.add_tensor(name, values)
        else:
            packed = gguf.quants.quantize(values, type_)
            writer.add_tensor(name, packed, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def reference(path: Path, dtype: torch.dtype) -> Any:
    """The file as transformers itself loads it."""
    source = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": str(path)}
    model = AutoModelForCausalLM.from_pretrained(
        **source,
        config=AutoConfig.from_pretrained(**source),
        dtype=dtype,
        quantization_config=GgufConfig(dequantize=True),
    )
    return model.eval()


def _add_vocabulary(writer: Any, gguf: Any) -> int:
    """The demo model's byte-level tokens; returns how many."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = set(tokenizer.all_special_tokens)
    types = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    return len(tokens)


def _weights(vocabulary: int) -> dict[str, "np.ndarray[Any, Any]"]:
    draw = np.random.default_rng(11)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (vocabulary, HIDDEN),
        "output_norm": (HIDDEN,),
        "output": (vocabulary, HIDDEN),
    }
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in _SHAPES.items()}
    return {
        f"{name}.weight": (draw.normal(0, 0.15, shape) + (len(shape) == 1)).astype(np.float32)
        for name, shape in shapes.items()
    }
