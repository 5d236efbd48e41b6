"""Skeletons: small random models of a checkpoint's class, with its config but for the sizes.

What decides whether a family can be served in stages (multipliers, kinds of layers, rotary
embeddings, sharing, soft caps) stays as it is in the config. Widths, numbers of layers and experts,
the vocabulary and the lengths of windows shrink, so that a skeleton runs in a fraction of a second.
"""

import copy
from contextlib import suppress
from typing import Any, Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel

from workers.model.structure import overrides_of, read_setting

VOCABULARY, WIDTH = 384, 64
# Enough for all kinds of layers in the usual patterns: five with a window, one without.
NUM_LAYERS = 6
MOST_LAYERS = 14
WINDOW, CHUNK, ORIGINAL_LENGTH = 11, 16, 32
LENGTH = 256
MOST_PARAMETERS = 100_000_000
# The widths of the parts between projections, as multiples of their smallest size.
_WIDTHS = {
    "intermediate_size": 96,
    "ffn_dim": 96,
    "n_inner": 96,
    "ffn_hidden_size": 96,
    "intermediate_size_mlp": 96,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32,
    "dff": 96,
}
_WINDOWS = {
    "sliding_window": WINDOW,
    "window_size": WINDOW,
    "attention_window": WINDOW,
    "attention_chunk_size": CHUNK,
}
_FIRST_LAYERS = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_TOP = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k")
_VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input")
_SPECIAL = (
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "sep_token_id",
    "decoder_start_token_id",
)


Widths = Literal["free", "heads", "own"]
"""The hidden size: any, that of the heads together, or that of the config like all other widths."""


def shrink(config: PretrainedConfig, widths: Widths = "free") -> PretrainedConfig:
    """The config of a skeleton."""
    small = copy.deepcopy(config)
    hidden = getattr(config.get_text_config(), "hidden_size", None)
    parts = _parts(small)
    for part in parts:
        known = _settings_of(part)
        _shrink_layers(part, known)
        _shrink_lengths(part, known)
        if widths != "own":
            _shrink_heads(part, known, is_hidden_free=widths == "free")
            _shrink_widths(part, known)
    for part in parts:  # e.g. of the experts of DBRX
        if hidden is not None and getattr(part, "hidden_size", None) == hidden:
            part.hidden_size = small.get_text_config().hidden_size
    return small


def make(
    model_class: type[PreTrainedModel], config: PretrainedConfig, widths: Widths = "free"
) -> PreTrainedModel:
    """A skeleton in fp32, with random weights that make all parts of the model matter.

    Raises `ValueError` if it were large, and what the model's code raises.
    """
    small = shrink(config, widths)
    with torch.device("meta"):
        num_parameters = model_class._from_config(copy.deepcopy(small)).num_parameters()
    if num_parameters > MOST_PARAMETERS:
        raise ValueError(f"a small model of its class has {num_parameters:,} parameters")
    state = torch.get_rng_state()
    try:
        torch.manual_seed(11)
        model = model_class._from_config(small, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.05 if "norm" in name or parameter.dim() == 1 else 0.1
                if parameter.is_floating_point():
                    parameter.add_(torch.randn_like(parameter) * scale)
    finally:
        torch.set_rng_state(state)
    made: PreTrainedModel = model.eval()
    return made


def _parts(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The config and those inside it."""
    inside = [part for part in vars(config).values() if isinstance(part, PretrainedConfig)]
    return [config, *(found for part in inside for found in _parts(part))]


def _shrink_widths(config: PretrainedConfig, known: dict[str, Any]) -> None:
    for name, width in _WIDTHS.items():
        value = known.get(name)
        if isinstance(value, int):
            _set(config, name, min(value, width))
        elif isinstance(value, (list, tuple)):  # by layer
            _set(config, name, type(value)(min(n, width) for n in getattr(config, name)))
    top = max([known[name] for name in _TOP if isinstance(known.get(name), int)], default=1)
    groups = known.get("n_group") or 1
    for name in _EXPERTS:
        if isinstance(known.get(name), int):
            _set(config, name, min(known[name], max(4, 2 * top, 4 * groups)))
    for name in _VOCABULARIES:
        if isinstance(known.get(name), int):
            _set(config, name, min(known[name], VOCABULARY))
    for n, name in enumerate(_SPECIAL):
        if isinstance(known.get(name), (int, list)):
            _set(config, name, n)


def _settings_of(config: PretrainedConfig) -> dict[str, Any]:
    """The settings, also under their common names (`n_embd` as `hidden_size`)."""
    names = [*vars(config), *(config.attribute_map or {})]
    found = {name: read_setting(config, name) for name in names if not name.startswith("_")}
    plain = (bool, int, float, str, list, tuple, dict)
    return {name: value for name, value in found.items() if isinstance(value, plain)}


def _set(config: PretrainedConfig, name: str, value: Any) -> None:
    """Change a setting, unless it is only derived from others."""
    with suppress(AttributeError):
        setattr(config, name, value)


def _shrink_layers(config: PretrainedConfig, known: dict[str, Any]) -> None:
    num_layers = known.get("num_hidden_layers")
    if not isinstance(num_layers, int):
        return
    kinds = known.get("layer_types")
    few = min(num_layers, NUM_LAYERS)
    if isinstance(kinds, (list, tuple)) and len(kinds) == num_layers:
        while few < min(num_layers, MOST_LAYERS) and set(kinds[:few]) != set(kinds):
            few += 1
    if known.get("num_kv_shared_layers"):
        few = min(num_layers, 2 * few)
        config.num_kv_shared_layers = few // 2
    for name, value in known.items():
        if isinstance(value, (list, tuple)) and len(value) == num_layers > few:
            _set(config, name, type(value)(value[:few]))
        elif name in _FIRST_LAYERS and isinstance(value, int):
            _set(config, name, min(value, few // 2))
    overrides = overrides_of(config)
    for layer in [layer for layer in overrides if layer >= few]:
        del overrides[layer]
    config.num_hidden_layers = few


def _shrink_heads(config: PretrainedConfig, known: dict[str, Any], *, is_hidden_free: bool) -> None:
    heads, hidden = known.get("num_attention_heads"), known.get("hidden_size")
    if not isinstance(heads, int) or not isinstance(hidden, int):
        return
    dim = known.get("head_dim")
    if dim is None and hasattr(config, "head_dim"):
        _set(config, "head_dim", hidden // heads)
    if not isinstance(dim, int) or not dim:
        dim = max(1, hidden // heads)
    kv_heads = known.get("num_key_value_heads")
    few = min(heads, 4)
    if isinstance(kv_heads, int):
        few_kv = min(kv_heads, 2)
        few = few_kv * min(max(1, heads // kv_heads), 2)
        config.num_key_value_heads = few_kv
    for overrides in overrides_of(config).values():
        if isinstance(overrides.get("num_key_value_heads"), int):
            overrides["num_key_value_heads"] = min(overrides["num_key_value_heads"], 2)
    config.num_attention_heads = few
    # The head size stays, because rotary settings may be made for it; it may follow from the two.
    is_set = isinstance(known.get("head_dim"), int) and "head_dim" in vars(config)
    small = WIDTH if is_set and is_hidden_free else few * dim
    config.hidden_size = small
    expand, mamba_dim = known.get("mamba_expand"), known.get("mamba_d_head")
    if isinstance(expand, int) and isinstance(mamba_dim, int):
        _set(config, "mamba_n_heads", expand * small // mamba_dim)
    for name in ("word_embed_proj_dim", "embedding_size", "lru_width"):
        if known.get(name) == hidden:
            _set(config, name, small)


def _shrink_lengths(config: PretrainedConfig, known: dict[str, Any]) -> None:
    """Shrink windows, and the original length of scaled rotary embeddings, below a short text's."""
    for name, most in _WINDOWS.items():
        if isinstance(known.get(name), int) and not isinstance(known[name], bool):
            _set(config, name, min(known[name], most))
    longest = known.get("max_position_embeddings")
    rope = known.get("rope_parameters")
    originals: list[int] = []
    if isinstance(rope, dict):
        rope = copy.deepcopy(rope)
        for part in (rope, *(p for p in rope.values() if isinstance(p, dict))):
            if isinstance(part.get("original_max_position_embeddings"), int):
                originals.append(part["original_max_position_embeddings"])
                part["original_max_position_embeddings"] = ORIGINAL_LENGTH
        config.rope_parameters = rope
    if isinstance(known.get("original_max_position_embeddings"), int):
        originals.append(known["original_max_position_embeddings"])
        config.original_max_position_embeddings = ORIGINAL_LENGTH
    if isinstance(longest, int):
        if originals:
            ratio = longest / originals[0]
            config.max_position_embeddings = max(1, round(ORIGINAL_LENGTH * ratio))
        else:
            config.max_position_embeddings = min(longest, LENGTH)
