"""The shape of a model: what its forward reads and computes, counted from its modules.

transformers builds the modules on the meta device from a config.json, so that all its families,
including mixtures of experts, are counted in the same way. Weights are taken as 16-bit numbers, and
so is KV unless it is set to fp8.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODELS = Path(__file__).with_name("models")
BYTES_PER_NUMBER = 2

_IN_A_LAYER = re.compile(r"\.\d+\.")
_ROUTED = re.compile(r"\.experts\.")
_OF_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")
# Names for experts in the configs of the families.
_NUM_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERTS_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")


class ModelShapeError(ValueError):
    """The shape cannot be determined; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Counts of a decoder. Parameters are those of the matrices of all layers together, except
    `num_parameters`, which is the total of the model (tied parameters once).
    """

    name: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    num_parameters: int
    layer_parameters: int
    """Parameters that every token passes: attention, dense MLPs, shared experts, routers."""
    expert_parameters: int
    """Parameters of the routed experts."""
    num_experts: int
    """Routed experts per layer; 0 in a dense model."""
    experts_per_token: int
    head_parameters: int
    layer_width: float
    """Numbers that the matrices read and write for one token, over all layers."""
    bytes_per_kv_number: int = BYTES_PER_NUMBER

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters."""
        return self.num_parameters * BYTES_PER_NUMBER

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token in all layers, as the daemon stores them: sliding
        windows are stored completely, and models with layers without KV are not served.
        """
        numbers = self.num_layers * self.num_kv_heads * (self.key_dim + self.value_dim)
        return numbers * self.bytes_per_kv_number


def known_models() -> list[str]:
    """The names that `read_shape` accepts without a file."""
    return sorted(path.stem for path in MODELS.glob("*.json"))


def read_shape(model: str) -> ModelShape:
    """The shape of a known model, of a folder with a config.json, or of such a file.

    Raises `ModelShapeError`. The first call imports transformers, which takes seconds.
    """
    path = Path(model)
    if path.is_dir():
        path, name = path / "config.json", path.resolve().name
    elif path.is_file():
        name = path.stem if path.stem != "config" else path.resolve().parent.name
    else:
        path, name = MODELS / f"{model.lower()}.json", model.lower()
        if name not in known_models():
            known = ", ".join(known_models())
            raise ModelShapeError(f"{model} is neither a folder, a config.json nor one of {known}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ModelShapeError(f"cannot read {path}: {error}") from error
    return _shape_of_json(text, path, name)


@cache
def _shape_of_json(text: str, path: Path, name: str) -> ModelShape:
    """The shape of a config's text, built once: a skeleton takes up to a second."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise ModelShapeError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise ModelShapeError(f"{path} is not the config of a model: model_type is missing")
    return shape_of(config, name)


def shape_of(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape of the model with this config.json. Raises `ModelShapeError`."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    family = config["model_type"]
    if config.get("quantization_config"):
        raise ModelShapeError(f"{name} is quantised, which the GPU model does not support")
    facts = {key: value for key, value in config.items() if key != "model_type"}
    try:
        parsed = AutoConfig.for_model(family, **facts)
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(parsed)
        return _count(skeleton, parsed.get_text_config(), name)
    except ModelShapeError:
        raise
    except Exception as error:  # the code of a family may raise anything for a wrong config
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelShapeError(f"{name} cannot be built as a {family} model: {reason}") from error


def _count(skeleton: "PreTrainedModel", config: Any, name: str) -> ModelShape:
    matrices = [
        (path, tuple(parameter.shape))
        for path, parameter in skeleton.named_parameters()
        if parameter.dim() > 1 and _IN_A_LAYER.search(path)
    ]
    dense = [shape for path, shape in matrices if not _ROUTED.search(path)]
    routed = [(path, shape) for path, shape in matrices if _ROUTED.search(path)]
    num_experts, experts_per_token = _routing(config, name) if routed else (0, 0)
    num_kv_heads, key_dim, value_dim = _kv_dims(config)
    head = skeleton.get_output_embeddings()
    width = sum(sum(shape) for shape in dense) + sum(
        _width_of_own(path, shape, num_experts, experts_per_token) for path, shape in routed
    )
    return ModelShape(
        name=name,
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=num_kv_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        num_parameters=sum(parameter.numel() for parameter in skeleton.parameters()),
        layer_parameters=sum(math.prod(shape) for shape in dense),
        expert_parameters=sum(math.prod(shape) for _, shape in routed),
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        head_parameters=0 if head is None else head.weight.numel(),
        layer_width=width,
    )


def _width_of_own(
    path: str, shape: tuple[int, ...], num_experts: int, experts_per_token: int
) -> float:
    """Numbers that the experts of one token read and write in this matrix; 0 for a bias."""
    if _OF_ONE_EXPERT.search(path):
        return sum(shape) * experts_per_token / num_experts
    return sum(shape[1:]) * experts_per_token if len(shape) == 3 else 0.0


def _routing(config: Any, name: str) -> tuple[int, int]:
    """Routed experts per layer, and how many of them a token passes."""
    num_experts = _first_number(config, _NUM_EXPERTS)
    experts_per_token = _first_number(config, _EXPERTS_PER_TOKEN)
    if num_experts is None or experts_per_token is None:
        raise ModelShapeError(
            f"{name}: the config has no number of experts, or of experts per token"
        )
    return num_experts, experts_per_token


def _first_number(config: Any, keys: Sequence[str]) -> int | None:
    numbers = (getattr(config, key, None) for key in keys)
    return next((number for number in numbers if isinstance(number, int)), None)


def _kv_dims(config: Any) -> tuple[int, int, int]:
    """KV heads, key dimension and value dimension, as transformers passes them to attention.

    Latent attention (DeepSeek) passes the expanded keys and values of all heads.
    """
    num_heads = config.num_attention_heads
    if getattr(config, "qk_nope_head_dim", None):
        return num_heads, config.qk_nope_head_dim + config.qk_rope_head_dim, config.v_head_dim
    dim = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return getattr(config, "num_key_value_heads", None) or num_heads, dim, dim
