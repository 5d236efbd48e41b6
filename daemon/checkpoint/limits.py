"""What a checkpoint's config limits: stages, ranks and the length of sequences.

It is read without transformers, so that a setting beyond a limit is named before a process has
started. A family may have other names than the usual ones for a size, and other rules: what is not
certain is no limit here, and the stages check it when they have loaded transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from configs.config import Config
from daemon.checkpoint.gguf_header import GgufHeader
from daemon.start_error import StartError

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_HEADS = ("num_key_value_heads", "num_attention_heads")
_LENGTH = "max_position_embeddings"
_ROPE = ("rope_scaling", "rope_parameters")
# With these types of rotary embeddings, `max_position_embeddings` is the limit (see
# `workers.model.context_length`); others multiply it.
_NOT_EXTENDED = ("default", "llama3", None)


@dataclass(frozen=True, slots=True)
class CheckpointLimits:
    """The number of layers, of heads by their names, and of tokens; None if unknown."""

    num_layers: int | None = None
    num_heads: Mapping[str, int] = field(default_factory=dict)
    max_tokens: int | None = None

    @classmethod
    def of_config(cls, config: Mapping[str, Any]) -> "CheckpointLimits":
        """Read a config.json."""
        inner = config.get("text_config")
        text = inner if isinstance(inner, dict) else config
        return cls(
            next((text[name] for name in _LAYERS if _is_count(text.get(name))), None),
            {name: text[name] for name in _HEADS if _is_count(text.get(name))},
            text[_LENGTH] if _is_count(text.get(_LENGTH)) and not _is_extended(text) else None,
        )

    @classmethod
    def of_gguf(cls, header: GgufHeader) -> "CheckpointLimits":
        """Read the header of a GGUF file."""
        settings = header.settings
        family = settings.get("general.architecture")
        found = {
            name: settings.get(f"{family}.{key}")
            for name, key in (
                (_LAYERS[0], "block_count"),
                (_HEADS[0], "attention.head_count_kv"),
                (_HEADS[1], "attention.head_count"),
                (_LENGTH, "context_length"),
            )
        }
        if f"{family}.nextn_predict_layers" in settings:  # counted as blocks, and not served
            del found[_LAYERS[0]]
        return cls.of_config(found)

    def check(self, config: Config) -> None:
        """Raise `StartError` if a setting is beyond a limit."""
        self._check_stages(config)
        self._check_ranks(config.pipeline.tensor_parallel_size)
        wanted = config.model.max_model_len
        if wanted is not None and self.max_tokens is not None and wanted > self.max_tokens:
            raise StartError(
                f"max_model_len {wanted} is more than the model's own limit of {self.max_tokens} "
                f"tokens ({_LENGTH} {self.max_tokens}); lower max_model_len"
            )

    def _check_stages(self, config: Config) -> None:
        if self.num_layers is None:
            return
        pipeline = config.pipeline
        num_stages, num_slices = pipeline.pipeline_parallel_size, pipeline.virtual_pipeline_size
        if num_stages * num_slices > self.num_layers:
            given = f"pipeline_parallel_size {num_stages}"
            kind = "stages"
            if num_slices > 1:
                given, kind = f"{given} x virtual_pipeline_size {num_slices}", "virtual stages"
            raise StartError(
                f"{given}: {self.num_layers} layers cannot be split into "
                f"{num_stages * num_slices} {kind}; at most {self.num_layers} are possible"
            )
        split = pipeline.layer_split
        if isinstance(split, tuple) and sum(split) != self.num_layers:
            raise StartError(
                f"layer_split {','.join(map(str, split))} names {sum(split)} layers, "
                f"the model has {self.num_layers}"
            )

    def _check_ranks(self, num_ranks: int) -> None:
        for name, heads in self.num_heads.items():
            if heads % num_ranks:
                raise StartError(
                    f"tensor_parallel_size {num_ranks}: the model has {heads} heads ({name}), "
                    f"which {num_ranks} ranks cannot share evenly"
                )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_extended(config: Mapping[str, Any]) -> bool:
    """Whether rotary embeddings may serve longer sequences than `max_position_embeddings`."""
    for name in _ROPE:
        given = config.get(name)
        if not isinstance(given, dict):
            continue
        for each in (given, *(inner for inner in given.values() if isinstance(inner, dict))):
            if each.get("rope_type", each.get("type")) not in _NOT_EXTENDED:
                return True
    return False
