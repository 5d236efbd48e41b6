"""Packed linear layers on a CPU: their weights are kept in the order in which a kernel reads them.

Where oneDNN has no 16-bit products, and in fp32, the kernel is ours. Measured with 768 inputs and
3,072 outputs on one core with AVX2: bf16 85 GFLOP/s, against torch's 10; fp32 with 2 to 12 rows, as
in small decode steps, 2 to 3 times torch's. A row's result does not depend on the number of rows.

Where oneDNN has 16-bit products the kernel is oneDNN's, as in torch's own layers, which may reorder
their weights in every call. Measured on a CPU with AMX: the same bits, 1.15 to 1.33 times as fast.
"""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from workers.kernels.library import TYPES, Library, LinearStep
from workers.model.quantisation import is_plain

# The check of layers in oneDNN's order: numbers of rows, and the largest accepted error as a
# fraction of the largest result, about a unit in the last place.
CHECKED_ROWS = (2, 7, 40)
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
# torch's functions that say whether this CPU has instructions for such products.
ONEDNN_SUPPORT = {
    torch.bfloat16: "_is_mkldnn_bf16_supported",
    torch.float16: "_is_mkldnn_fp16_supported",
}


class Panels:
    """The packed weights of one layer, or of several of the same shape, e.g. experts.

    `weights` is `[layers, outputs, inputs]`, `bias` is `[layers, outputs]`.
    """

    def __init__(self, weights: Tensor, bias: Tensor | None, library: Library) -> None:
        self._library = library
        self._panels = library.pack(weights.detach())
        self._bias = None if bias is None else bias.detach().clone()
        self._dtype = weights.dtype
        layers, self._num_outputs, self._num_inputs = weights.shape
        self._begins = np.zeros(layers + 1, np.int64)  # torch's assignment takes 3 us, in each call
        self._arguments = LinearStep(
            panels=self._panels.data_ptr(),
            bias=None if self._bias is None else self._bias.data_ptr(),
            begins=self._begins.ctypes.data,
            inputs=self._num_inputs,
            outputs=self._num_outputs,
            layers=layers,
            type=TYPES[weights.dtype],
        )

    def multiply(self, rows: Tensor, ends: Tensor | None = None) -> Tensor:
        """Return `[rows, outputs]` for `[rows, inputs]`.

        With several layers, layer i takes the rows from `ends[i - 1]` up to `ends[i]`.
        """
        if rows.dtype != self._dtype:
            raise RuntimeError(f"rows of {rows.dtype} for weights of {self._dtype}")
        if rows.stride(1) != 1:
            rows = rows.contiguous()
        self._begins[1:] = len(rows) if ends is None else ends.numpy()
        out = rows.new_empty(len(rows), self._num_outputs)
        to = self._arguments
        to.input, to.output = rows.data_ptr(), out.data_ptr()
        to.rows, to.input_row = len(rows), rows.stride(0)
        to.threads = torch.get_num_threads()
        self._library.linear(ctypes.byref(to))
        return out


class PackedLinear(nn.Linear):
    """A linear layer whose weights only the library can read; `weight` has a shape but no data."""

    def __init__(self, weight: Tensor, bias: Tensor | None, library: Library) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self._panels = Panels(weight[None], None if bias is None else bias[None], library)
        self.weight = nn.Parameter(weight.to("meta"), requires_grad=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """Return `[..., outputs]` for `[..., inputs]`."""
        out = self._panels.multiply(input.reshape(-1, self.in_features))
        return out.view(*input.shape[:-1], self.out_features)


class OnednnLinear(nn.Linear):
    """A linear layer with a weight in oneDNN's order; `weight` has a shape but no data."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        ordered = torch.ops.mkldnn._reorder_linear_weight  # private
        self._ordered = ordered(weight.detach().contiguous())
        self.weight = nn.Parameter(weight.to("meta"), requires_grad=False)
        self._bias = None if bias is None else bias.detach().clone()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name in torch
        """Return `[..., outputs]` for `[..., inputs]`."""
        rows = input.reshape(-1, self.in_features)
        if not len(rows):
            return input.new_empty(*input.shape[:-1], self.out_features)
        multiply = torch.ops.mkldnn._linear_pointwise  # private
        out: Tensor = multiply(rows, self._ordered, self._bias, "none", [], "")
        return out.view(*input.shape[:-1], self.out_features)


class PackingError(Exception):
    """oneDNN cannot keep the weights of this model in its order; the message gives the reason."""


def are_worth_packing(dtype: torch.dtype) -> bool:
    """Whether packed layers of this type are faster on this CPU than torch's own."""
    return dtype in TYPES and _onednn_supports(dtype) is False


def has_onednn_products(dtype: torch.dtype) -> bool:
    """Whether torch's layers of this type are computed by oneDNN, which can keep their order."""
    return _onednn_supports(dtype) is True


def pack(model: nn.Module, library: Library) -> int:
    """Replace the linear layers of a model by packed ones; returns how many."""
    return _replace(model, lambda weight, bias: PackedLinear(weight, bias, library))


def pack_for_onednn(model: nn.Module) -> int:
    """Replace the linear layers of a model by ones in oneDNN's order; returns how many.

    First, one of each size is checked. Raises `PackingError`, and leaves the model as it is, if
    torch or oneDNN refuses, or if a result differs from torch's by more than rounding.
    """
    kinds = set()
    for _, _, layer in _linear_layers(model):
        kind = (type(layer), layer.weight.shape, layer.weight.dtype, layer.bias is None)
        if kind not in kinds:
            kinds.add(kind)
            _check(layer)
    return _replace(model, OnednnLinear)


def _onednn_supports(dtype: torch.dtype) -> bool | None:
    """Whether oneDNN has 16-bit products of this type on this CPU; None where torch hides it."""
    if dtype not in ONEDNN_SUPPORT:
        return False
    is_supported = getattr(torch.ops.mkldnn, ONEDNN_SUPPORT[dtype], None)  # private
    return None if is_supported is None else bool(is_supported())


def _linear_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Any]]:
    """The layers that can be replaced, each with its parent and its name there."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if is_plain(child) and child.weight.dtype in TYPES:
                yield parent, name, child


def _weight_of(layer: Any) -> Tensor:
    """The weight `[outputs, inputs]`."""
    weight: Tensor = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    return weight


def _check(layer: Any) -> None:
    """Compare a layer with its replacement; raises `PackingError`."""
    weight = _weight_of(layer)
    make = torch.Generator().manual_seed(weight.shape[0])
    try:
        packed = OnednnLinear(weight, layer.bias)
        for count in CHECKED_ROWS:
            rows = torch.randn(count, weight.shape[1], generator=make).to(weight.dtype)
            with torch.inference_mode():
                want, got = layer(rows), packed(rows)
            if got.dtype != want.dtype or got.shape != want.shape:
                raise PackingError(f"oneDNN returned {got.dtype} {tuple(got.shape)}")
            largest, error = want.abs().max().item(), (got - want).abs().max().item()
            if not error <= TOLERANCES[weight.dtype] * largest:  # NaN is an error too
                raise PackingError(f"its results differ from torch's by {error:g} of {largest:g}")
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:  # private functions
        first_line = str(error).strip().partition("\n")[0]
        raise PackingError(f"{type(error).__name__}: {first_line}") from error


def _replace(model: nn.Module, make: Callable[[Tensor, Tensor | None], nn.Module]) -> int:
    """Replace the linear layers, each by one new layer wherever it is used; returns how many."""
    made: dict[nn.Module, nn.Module] = {}
    for parent, name, layer in list(_linear_layers(model)):
        if layer not in made:
            made[layer] = make(_weight_of(layer), layer.bias)
            del layer.weight  # frees it now, unless the embedding has it too
        setattr(parent, name, made[layer])
    return len(made)
