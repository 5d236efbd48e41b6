"""Partitioning: makes a subclass of a model class that keeps only one stage's part.

Every stage runs the forward of the whole model. On a later stage, the activations of the stage
before enter at its first layer, in place of the hidden states that were made from no embeddings; on
all but the last stage, the pass ends at the first layer of the next stage. So whatever a family
does before its first layer has an effect on the first stage only, what it does between two layers
on one stage, and what it does after its last layer runs on the last stage only.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from workers.model.structure import Structure, find_trunk


class LeaveStage(Exception):  # noqa: N818 - no error: it ends the pass of a stage
    """The pass has reached the next stage's first layer, whose hidden states it brings."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Port:
    """Where activations enter and leave a stage: rows `[tokens, width]`.

    A row has the hidden states of a token, and the carried arguments of the layers that follow.
    """

    def __init__(self, structure: Structure, layers: range, num_layers: int) -> None:
        self._structure, self._layers, self._num_layers = structure, layers, num_layers
        self.num_outputs = structure.num_outputs
        self.received: Tensor | None = None  # [tokens, width]
        self._lead = prod(structure.lead)
        self._carried = sum(width for _, width in structure.carried)  # of one layer
        self._later: dict[int, list[Tensor]] = {}

    @property
    def last_layer_called(self) -> int:
        """The layer at which the pass ends: the first stage calls all that it carries for."""
        is_carrying = self._carried and not self._layers.start
        return self._num_layers - 1 if is_carrying else self._layers.stop

    def width_at(self, layer: int, hidden_size: int) -> int:
        """The width of the rows before this layer."""
        return self._lead * hidden_size + (self._num_layers - layer) * self._carried

    def hidden(self) -> Tensor:
        """The received hidden states in the shape that a layer takes."""
        assert self.received is not None
        num_layers = self._num_layers - self._layers.start
        width = self.received.shape[1] - num_layers * self._carried
        rows = self.received[:, :width].reshape(-1, *self._structure.lead, width // self._lead)
        return rows.movedim(0, self._structure.token_dim)

    def carried(self, layer: int) -> dict[str, Tensor]:
        """The received arguments of a layer, each `[1, tokens, width]`."""
        assert self.received is not None
        found, end = {}, self.received.shape[1]
        end -= (self._num_layers - 1 - layer) * self._carried
        for name, width in reversed(self._structure.carried):
            found[name] = self.received[None, :, end - width : end]
            end -= width
        return found

    def keep(self, layer: int, arguments: Mapping[str, Any]) -> None:
        """Keep what a layer of a later stage needs of its arguments, on the first stage."""
        if not self._layers.start:
            self._later[layer] = [arguments[name] for name, _ in self._structure.carried]

    def rows(self, hidden: Tensor) -> Tensor:
        """The rows that the next stage receives."""
        rows = hidden.movedim(self._structure.token_dim, 0).flatten(1)
        if not self._structure.carried:
            return rows
        if self._layers.start == 0:
            carried = [value[0] for _, values in sorted(self._later.items()) for value in values]
        else:
            assert self.received is not None
            num_later = self._num_layers - self._layers.stop
            carried = [self.received[:, -num_later * self._carried :]]
        return torch.cat([rows, *carried], 1)


def stage_class(
    whole: type[PreTrainedModel], layers: range, structure: Structure
) -> type[PreTrainedModel]:
    """Make a class that builds the whole skeleton and keeps only the part of the stage."""

    def build_and_cut(
        self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kw: Any
    ) -> None:
        whole.__init__(self, config, *args, **kw)
        cut(self, layers, structure)

    members = {
        "__init__": build_and_cut,
        "__module__": whole.__module__,
        # The checkpoint also has the tensors of the other stages.
        "_keys_to_ignore_on_load_unexpected": [r".*"],
    }
    return type(whole.__name__, (whole,), members)


def cut(model: PreTrainedModel, layers: range, structure: Structure) -> None:
    """Keep the stage's part of a model; its `stage_port` is where activations enter and leave."""
    trunk, name = find_trunk(model)
    all_layers = getattr(trunk, name)
    num_layers = len(all_layers)
    is_first, is_last = layers.start == 0, layers.stop == num_layers
    port = Port(structure, layers, num_layers)
    for i, layer in enumerate(all_layers):
        if i < layers.start:
            all_layers[i] = _Earlier(layer, port)
        elif i >= layers.stop:
            all_layers[i] = _Later(layer, port, i)
    tied = _tied_modules(model) if is_last else set()
    if not is_first:
        _enter(all_layers, layers, port, structure)
        for path in structure.before:
            if path not in tied:
                _replace(model, path, partial(_absent, port=port))
    if not is_last:
        for path in structure.after:
            _replace(model, path, lambda _: _Gone())
        model.all_tied_weights_keys = {}
    model.stage_port = port


def _enter(
    all_layers: Sequence[nn.Module], layers: range, port: Port, structure: Structure
) -> None:
    """Let the stage's first layer take the received hidden states, and all theirs carried."""

    def take_hidden(_: nn.Module, args: tuple[Any, ...], kw: dict[str, Any]) -> Any:
        return with_arguments({"0" if args else "hidden_states": port.hidden()}, args, kw)

    all_layers[layers.start].register_forward_pre_hook(take_hidden, with_kwargs=True)
    if structure.carried:
        for i in layers:

            def take_carried(
                _: nn.Module, args: tuple[Any, ...], kw: dict[str, Any], layer: int = i
            ) -> Any:
                return with_arguments(port.carried(layer), args, kw)

            all_layers[i].register_forward_pre_hook(take_carried, with_kwargs=True)


def with_arguments(
    new: Mapping[str, Tensor], args: tuple[Any, ...], kw: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace arguments by position ("0", "1") or name."""
    positional = tuple(new.get(str(i), value) for i, value in enumerate(args))
    return positional, kw | {name: value for name, value in new.items() if not name.isdigit()}


class _Elsewhere(nn.Module):
    """Takes the place of a layer of another stage, with its plain attributes, e.g. its kind."""

    def __init__(self, layer: nn.Module, port: Port) -> None:
        super().__init__()
        self._port = port
        for name, value in vars(layer).items():
            if name not in vars(self) and isinstance(value, (str, int, float, type(None))):
                setattr(self, name, value)

    def _pass_on(self, hidden: Tensor) -> Any:
        """Return the hidden states as a layer does."""
        num_outputs = self._port.num_outputs
        return (hidden, *[None] * (num_outputs - 1)) if num_outputs else hidden


class _Earlier(_Elsewhere):
    """Takes the place of a layer of an earlier stage."""

    def forward(self, *args: Any, **kw: Any) -> Any:
        return self._pass_on(args[0] if args else kw["hidden_states"])


class _Later(_Elsewhere):
    """Takes the place of a layer of a later stage; the last one that is called ends the pass."""

    def __init__(self, layer: nn.Module, port: Port, number: int) -> None:
        super().__init__(layer, port)
        self._number = number

    def forward(self, *args: Any, **kw: Any) -> Any:
        hidden = args[0] if args else kw["hidden_states"]
        self._port.keep(self._number, {str(n): value for n, value in enumerate(args)} | kw)
        if self._number == self._port.last_layer_called:
            raise LeaveStage(hidden)
        return self._pass_on(hidden)


class _Gone(nn.Module):
    """Takes the place of a module whose result has no effect on this stage."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.bias = torch.empty(0)  # transformers' initialisation asks for them

    def forward(self, hidden: Tensor, *args: Any, **kw: Any) -> Tensor:  # noqa: ARG002
        return hidden


class _NoRows(nn.Module):
    """Takes the place of an embedding or a projection before the first layer."""

    def __init__(self, num_rows: int, width: int, port: Port) -> None:
        super().__init__()
        self._num_rows, self._width, self._port = num_rows, width, port

    @property
    def weight(self) -> Tensor:
        """Zeros without memory: their type is asked for, and rows of special tokens."""
        if self._port.received is None:  # while the model is loaded
            return torch.empty(0)
        return self._port.received.new_zeros(1, self._width).expand(self._num_rows, -1)

    def forward(self, inputs: Tensor, *args: Any, **kw: Any) -> Tensor:  # noqa: ARG002
        dims = inputs.shape[:-1] if inputs.is_floating_point() else inputs.shape
        assert self._port.received is not None
        return self._port.received.new_zeros(*dims, self._width)


def _absent(module: nn.Module, port: Port) -> nn.Module:
    """What takes the place of a module before the first layer, on a later stage."""
    if isinstance(module, nn.Embedding):
        return _NoRows(module.num_embeddings, module.embedding_dim, port)
    if isinstance(module, nn.Linear):
        return _NoRows(module.out_features, module.out_features, port)
    is_norm = "norm" in type(module).__name__.lower()
    return _Gone() if is_norm else module  # others are not known to keep a shape


def _replace(model: nn.Module, path: str, make: Any) -> None:
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    setattr(parent, name, make(getattr(parent, name)))


def _tied_modules(model: PreTrainedModel) -> set[str]:
    """The names of the modules that hold a tied weight."""
    keys = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return {key.rpartition(".")[0] for key in (*keys, *keys.values())}
