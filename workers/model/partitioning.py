"""Partitioning: makes a subclass of a model class that keeps only one stage's part."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from workers.model.attention.interface import UnsupportedModelError

# The names of the final norm in models that declare no pipeline plan.
_FINAL_NORMS = ("norm", "final_layer_norm", "ln_f", "final_norm", "final_layernorm")
# Names of absolute position embeddings, which only the first stage adds.
_POSITION_EMBEDDINGS = ("embed_positions", "wpe")


def stage_class(whole: type[PreTrainedModel], layers: range) -> type[PreTrainedModel]:
    """Make a class that builds the whole skeleton and keeps only the part of the stage."""

    def build_and_cut(
        self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kw: Any
    ) -> None:
        whole.__init__(self, config, *args, **kw)
        _cut(self, layers)

    members = {
        "__init__": build_and_cut,
        "__module__": whole.__module__,
        # The checkpoint also has the tensors of the other stages.
        "_keys_to_ignore_on_load_unexpected": [r".*"],
    }
    return type(whole.__name__, (whole,), members)


def find_trunk(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """Find the module that owns the list of layers, and the attribute name of the list."""
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == num_layers:
                return module, name
    raise UnsupportedModelError(f"no list of {num_layers} layers found in {type(model).__name__}")


class _Foreign(nn.Module):
    """Replaces a module of another stage and returns its first argument."""

    def forward(self, hidden_states: Tensor, *args: Any, **kw: Any) -> Tensor:  # noqa: ARG002
        return hidden_states


class _NoPositions(nn.Module):
    """Replaces position embeddings, which the first stage adds; a 0-dim zero keeps the dtype."""

    def forward(self, *args: Any, **kw: Any) -> Tensor:  # noqa: ARG002
        return torch.zeros(())


def _cut(model: PreTrainedModel, layers: range) -> None:
    """Keep the stage's layers, the embeddings on the first stage, norm and head on the last."""
    trunk, name = find_trunk(model)
    all_layers = getattr(trunk, name)
    is_first, is_last = layers.start == 0, layers.stop == len(all_layers)
    for i in range(len(all_layers)):
        if i not in layers:
            all_layers[i] = _Foreign()
    is_tied = bool(model.config.get_text_config().tie_word_embeddings)
    if not is_first:
        _drop_beginning(model, trunk, keep_embedding=is_last and is_tied)
    if not is_last:
        _drop_end(model, trunk, name)


def _drop_beginning(model: PreTrainedModel, trunk: nn.Module, *, keep_embedding: bool) -> None:
    """Drop the embeddings; a tied last stage keeps them as the weight of its head."""
    if not keep_embedding:
        model.set_input_embeddings(_Foreign())
    for name in _POSITION_EMBEDDINGS:
        if hasattr(trunk, name):
            setattr(trunk, name, _NoPositions())
    if getattr(trunk, "project_in", None) is not None:
        trunk.project_in = None  # type: ignore[assignment]


def _drop_end(model: PreTrainedModel, trunk: nn.Module, layers_name: str) -> None:
    """Drop the final norm and the head, which only the last stage needs."""
    plan = list(model.config.base_model_pp_plan or {})
    named = plan[plan.index(layers_name) + 1 :] if layers_name in plan else []
    for name in named or _FINAL_NORMS:
        if isinstance(getattr(trunk, name, None), nn.Module):
            setattr(trunk, name, _Foreign())
    if getattr(trunk, "project_out", None) is not None:
        trunk.project_out = None  # type: ignore[assignment]
    model.set_output_embeddings(_Foreign())
    model.all_tied_weights_keys = {}
