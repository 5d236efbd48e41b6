"""Small random checkpoints of many architectures, made in a folder in a second or two.

Their tokenizer has one word per token, `t0 t1 t2 ...`, so that text and token ids are the same
thing and no difference can hide in the decoding.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

VOCABULARY = 320
NUM_LAYERS = 4
TOKENIZER = "tokenizer"

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 32},
    "opt": {"ffn_dim": 192, "word_embed_proj_dim": 64},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 24},
    "mixtral": {"num_key_value_heads": 2, "num_local_experts": 4},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 24},
    "gpt2": {},
    "gpt_neox": {},
    "phi": {},
    "gemma": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "olmo2": {"num_key_value_heads": 2},
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 24,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "granite": {
        "num_key_value_heads": 2,
        "embedding_multiplier": 3.0,
        "residual_multiplier": 0.4,
        "attention_multiplier": 0.1,
        "logits_scaling": 2.0,
    },
    "phimoe": {
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 24,
    },
    "llama4_text": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size_mlp": 96,
        "num_local_experts": 4,
        "attention_chunk_size": 20,
        "layer_types": ["chunked_attention", "full_attention"] * 2,
    },
    # With per-layer inputs.
    "gemma4_text": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "global_head_dim": 32,
        "sliding_window": 24,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "bloom": {"n_layer": NUM_LAYERS},
}


def make_checkpoint(folder: Path, family: str, *, shard_size: str = "5GB", **changes: Any) -> Path:
    """A checkpoint of `NUM_LAYERS` layers in the folder; the same seed gives the same weights."""
    config = AutoConfig.for_model(
        family,
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": NUM_LAYERS,
            "num_attention_heads": 4,
            "max_position_embeddings": 1024,
            "pad_token_id": 1,
            "bos_token_id": 1,
            "eos_token_id": 2,
            **FAMILIES.get(family, {}),
            **changes,
        },
    )
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Norms and biases are made non-trivial, weights large enough for clear winners.
            scale = 0.05 if "norm" in name or parameter.dim() == 1 else 0.15
            parameter.add_(torch.randn_like(parameter) * scale)
    model.save_pretrained(folder, max_shard_size=shard_size)
    # Beside the model: in its folder, transformers would take the family's own tokenizer class.
    make_tokenizer(VOCABULARY).save_pretrained(folder / TOKENIZER)
    return folder


def make_tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word per token: the text of ids [3, 14] is `t3 t14`."""
    words = {f"t{i}": i for i in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # None is special: the server leaves special tokens out of the text.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def ids_of(text: str) -> list[int]:
    """Token ids of a text of that tokenizer."""
    return [int(word.removeprefix("t")) for word in text.split()]
