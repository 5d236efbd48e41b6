"""The fused operations on CPUs, by the kernels of elementwise.cpp.

A call takes some 10 us at the sizes of a small decode step, so structures are kept where possible.
"""

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.kernels.library import TYPES, GatedStep, Library, NormStep, RotaryStep


class NativeOperations:
    """See `workers.model.fused.operations.FusedOperations`."""

    joins_products = True

    def __init__(self, library: Library) -> None:
        self._library = library

    def rms_norm(
        self, weight: Tensor, epsilon: float, offset: float, rounds: bool
    ) -> Callable[[Tensor], Tensor]:
        """See `FusedOperations.rms_norm`."""
        step = NormStep(
            width=len(weight),
            type=TYPES[weight.dtype],
            rounds=rounds,
            epsilon=epsilon,
            offset=offset,
        )
        return _RmsNorm(weight, step, self._library)

    def rotate(
        self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, rounds: bool
    ) -> tuple[Tensor, Tensor]:
        """See `FusedOperations.rotate`."""
        return self._rotated(query, cos, sin, rounds), self._rotated(key, cos, sin, rounds)

    def gate(self, products: Sequence[Tensor], activation: int) -> Tensor:
        """See `FusedOperations.gate`."""
        (both,) = products
        width = both.shape[-1] // 2
        out = both.new_empty(*both.shape[:-1], width)
        step = GatedStep(
            both.data_ptr(),
            out.data_ptr(),
            out.numel() // width,
            width,
            TYPES[both.dtype],
            activation,
            torch.get_num_threads(),
        )
        self._library.gated(ctypes.byref(step))
        return out

    def _rotated(self, rows: Tensor, cos: Tensor, sin: Tensor, rounds: bool) -> Tensor:
        _, heads, tokens, dim = rows.shape
        out = rows.new_empty(tokens, heads, dim)
        _, head_stride, token_stride, _ = rows.stride()
        step = RotaryStep(
            rows.data_ptr(),
            cos.data_ptr(),
            sin.data_ptr(),
            out.data_ptr(),
            head_stride,
            token_stride,
            cos.stride(1),
            heads,
            tokens,
            dim,
            cos.shape[2],
            TYPES[rows.dtype],
            cos.dtype != rows.dtype,
            rounds,
            torch.get_num_threads(),
        )
        self._library.rotate(ctypes.byref(step))
        return out.transpose(0, 1)[None]


class _RmsNorm:
    def __init__(self, weight: Tensor, step: NormStep, library: Library) -> None:
        self._weight, self._step, self._library = weight, step, library

    def __call__(self, hidden_states: Tensor) -> Tensor:
        rows = hidden_states.contiguous()
        out, step = torch.empty_like(rows), self._step
        step.input, step.output = rows.data_ptr(), out.data_ptr()
        step.weight = self._weight.data_ptr()
        step.rows = rows.numel() // step.width
        step.threads = torch.get_num_threads()
        self._library.norm(ctypes.byref(step))
        return out
