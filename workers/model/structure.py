"""The structure of a model: what runs before, in and after its layers, found by a forward pass.

What is known here of a family comes from its own code, run once on a small model of its class.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from workers.model.attention.interface import UnsupportedModelError

# The number of tokens of the forward pass: no other dimension of a tensor is likely to have it.
NUM_TOKENS = 23


class Structure(msgspec.Struct, frozen=True):
    """What a stage must know of a model class beside its layers.

    Modules are named as in the whole model; only those without modules of their own, with weights.
    """

    before: tuple[str, ...] = ()  # run only before the first layer
    after: tuple[str, ...] = ()  # run only after the last layer
    token_dim: int = 1  # of the hidden states that a layer takes, e.g. [1, tokens, hidden]
    lead: tuple[int, ...] = (1,)  # the sizes of their other dimensions, without the last one
    num_outputs: int = 0  # a layer returns a tuple of so many values; 0: a tensor
    # Arguments of layers that depend on the embeddings, by position ("1") or name, and their width:
    # the first stage computes them for all layers (per-layer inputs of Gemma 3n and Gemma 4).
    carried: tuple[tuple[str, int], ...] = ()


def find_trunk(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """Find the module that owns the list of layers, and the attribute name of the list."""
    num_layers = model.config.get_text_config().num_hidden_layers
    decoder = model.get_decoder()
    # A vision tower beside the decoder may have as many layers.
    for root in (decoder, model):
        for module in root.modules() if isinstance(root, nn.Module) else ():
            for name, child in module.named_children():
                if isinstance(child, nn.ModuleList) and len(child) == num_layers:
                    return module, name
    raise UnsupportedModelError(f"no list of {num_layers} layers found in {type(model).__name__}")


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The list of layers."""
    trunk, name = find_trunk(model)
    layers = getattr(trunk, name)
    assert isinstance(layers, nn.ModuleList)
    return layers


Arguments = dict[str, Any]


class Trace:
    """What a forward pass of a model calls, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []  # names of modules; "" for a layer
        self.arguments: dict[int, Arguments] = {}  # of each layer, by position or name
        self.output: object = None  # of the last layer

    @contextmanager
    def of(self, model: PreTrainedModel) -> Iterator[None]:
        """Record while the context lasts."""
        layers = layers_of(model)
        inside = {id(module) for layer in layers for module in layer.modules()}
        with ExitStack() as hooks:
            for i, layer in enumerate(layers):
                begin = partial(self._enter, i)
                hooks.callback(layer.register_forward_pre_hook(begin, with_kwargs=True).remove)
                hooks.callback(layer.register_forward_hook(self._leave).remove)
            for name, module in model.named_modules():
                if id(module) not in inside and holds_weights(module):
                    note = partial(self._note, name)
                    hooks.callback(module.register_forward_pre_hook(note).remove)
            yield

    def _enter(self, i: int, _: nn.Module, args: tuple[Any, ...], kw: dict[str, Any]) -> None:
        self.calls.append("")
        self.arguments[i] = {str(n): value for n, value in enumerate(args)} | kw

    def _leave(self, _: nn.Module, args: Any, output: object) -> None:  # noqa: ARG002
        self.output = output

    def _note(self, name: str, *_: Any) -> None:
        self.calls.append(name)


def holds_weights(module: nn.Module) -> bool:
    """Whether a module has weights of its own and no modules inside."""
    return not any(module.children()) and any(True for _ in module.parameters(recurse=False))


def of_trace(trace: Trace) -> Structure:
    """The structure that a forward pass of `NUM_TOKENS` tokens shows, without `carried`.

    Raises `UnsupportedModelError` where the layers take no hidden states.
    """
    at = [n for n, name in enumerate(trace.calls) if not name]
    if not at:
        raise UnsupportedModelError("a forward pass does not run its layers")
    before, after = trace.calls[: at[0]], trace.calls[at[-1] :]
    between = set(trace.calls[at[0] : at[-1]])
    hidden = hidden_of(trace.arguments[0])
    if hidden is None or hidden.shape.count(NUM_TOKENS) != 1:
        raise UnsupportedModelError("its layers do not take hidden states first")
    token_dim = hidden.shape.index(NUM_TOKENS)
    if token_dim == hidden.ndim - 1:
        raise UnsupportedModelError("its layers do not take hidden states first")
    lead = tuple(size for dim, size in enumerate(hidden.shape[:-1]) if dim != token_dim)
    return Structure(
        tuple(sorted(set(before) - between - set(after))),
        tuple(sorted(set(after) - between - set(before) - {""})),
        token_dim,
        lead,
        len(trace.output) if isinstance(trace.output, tuple) else 0,
    )


def hidden_of(arguments: Arguments) -> Tensor | None:
    """The hidden states among the arguments of a layer."""
    found = arguments.get("0", arguments.get("hidden_states"))
    return found if isinstance(found, Tensor) else None


def with_carried(found: Structure, full: Trace, lean: Trace) -> Structure:
    """The same with the arguments of layers that differ in a pass without embeddings.

    Raises `UnsupportedModelError` where one is no tensor with a row per token in each layer.
    """
    later = [full.arguments[i] for i in lean.arguments]
    hidden = hidden_of(later[0])
    carried = []
    for name, value in later[0].items():
        other = lean.arguments[min(lean.arguments)].get(name)
        if value is hidden or not isinstance(value, Tensor):
            continue
        if isinstance(other, Tensor) and torch.equal(value, other):
            continue
        width = value.shape[-1]
        for arguments in later:
            argument = arguments.get(name)
            if not isinstance(argument, Tensor) or argument.shape != (1, NUM_TOKENS, width):
                raise UnsupportedModelError(
                    f"the argument {name} of its layers cannot be passed from stage to stage"
                )
        carried.append((name, width))
    return msgspec.structs.replace(found, carried=tuple(carried))


def read_setting(config: PretrainedConfig, name: str) -> Any:
    """A setting of a config, or None; if some layers have another one, that of the others."""
    read = getattr(config, "_getattr_without_heterogeneous_validation", partial(getattr, config))
    with suppress(AttributeError):
        return read(name)
    return None


def overrides_of(config: PretrainedConfig) -> dict[int, dict[str, Any]]:
    """What a config sets for single layers."""
    found = getattr(config, "_heterogeneity_spec", None)
    return found.per_layer_overrides if found is not None else {}


def last_cut(layers: nn.ModuleList) -> int:
    """The last layer that a stage may begin with.

    Layers that reuse the keys and values of an earlier layer (Gemma 3n, Gemma 4) have to be on its
    stage.
    """
    attentions = [(i, module) for i, layer in enumerate(layers) for module in layer.modules()]
    if not any(getattr(module, "is_kv_shared_layer", False) for _, module in attentions):
        return len(layers) - 1
    return min(i for i, module in attentions if getattr(module, "store_full_length_kv", False))
