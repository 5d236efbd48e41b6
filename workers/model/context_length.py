"""The longest sequence that a model supports, from its config."""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig

# Without any limit in the config: the longest sequence that is ever worth planning for.
_UNLIMITED = 1 << 20
# A factor has no effect on the first; `max_position_embeddings` is after scaling for the other.
_NOT_EXTENDED = ("default", "llama3")


@dataclass(slots=True, frozen=True)
class ContextLength:
    """The longest sequence in tokens, and where the number comes from."""

    tokens: int
    reason: str


def context_length(config: PretrainedConfig) -> ContextLength:
    """Derive the longest sequence of a text config, as vLLM does.

    The factor of RoPE scaling multiplies the original length. With longrope this counts only if
    `max_position_embeddings` is not already larger; with llama3 it is always after scaling.
    """
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None:
        return ContextLength(_UNLIMITED, "the config has no max_position_embeddings")
    found = ContextLength(int(limit), f"max_position_embeddings {limit}")
    if "gemma3" in config.model_type:  # already scaled, although the type is linear
        return found
    for parameters in _all_parameters(config):
        scaled = _scaled(int(limit), parameters)
        if scaled is not None:
            return scaled
    return found


def _all_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The RoPE parameters of the model, or of each of its layer types; none without RoPE.

    A family with learned positions ignores RoPE parameters in its config, and cannot be extended.
    """
    if not hasattr(type(config), "rope_parameters"):
        return []
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in parameters.values() if isinstance(each, dict)]
    return nested or [parameters]


def _scaled(limit: int, parameters: dict[str, Any]) -> ContextLength | None:
    """The length that RoPE scaling gives, or None if it does not change it."""
    rope_type, factor = parameters.get("rope_type", "default"), parameters.get("factor")
    if rope_type in _NOT_EXTENDED or not factor:
        return None
    name, original = "max_position_embeddings", limit
    if rope_type in ("yarn", "longrope"):
        name = "original_max_position_embeddings"
        original = int(parameters.get(name) or limit)
    tokens = int(original * factor)
    if rope_type == "longrope" and tokens <= limit:
        return None
    return ContextLength(tokens, f"{name} {original} x factor {factor:g} of its {rope_type} RoPE")
