"""The compiled library: its functions, and the structures that they take.

The structures mirror those of the C++ sources, field by field. A call releases the interpreter
lock, so heartbeats go on.
"""

import ctypes
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from workers.kernels import compiler

# The element types of the kernels, as both sources number them.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
# Those of the KV cache besides.
CACHE_TYPES = TYPES | {torch.float8_e4m3fn: 3, torch.float8_e5m2: 4}

_Pointer, _Int, _Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class AttentionStep(ctypes.Structure):
    """`AttentionStep` in attention.h, which describes the fields."""

    _fields_ = [
        *((name, _Pointer) for name in ("query", "key", "value", "out", "keys", "values")),
        *((name, _Pointer) for name in ("sinks", "begins", "starts", "tables", "blocks")),
        *((name, _Int) for name in ("query_head", "query_token", "key_head", "key_token")),
        *((name, _Int) for name in ("value_head", "value_token")),
        *((name, _Int) for name in ("rows", "tokens", "heads", "kv_heads", "key_dim")),
        *((name, _Int) for name in ("value_dim", "block_size", "window", "chunk", "type")),
        *((name, _Int) for name in ("cache_type", "threads")),
        *((name, _Float) for name in ("scale", "softcap")),
    ]


class LinearStep(ctypes.Structure):
    """`LinearStep` in linear.cpp, which describes the fields."""

    _fields_ = [
        *((name, _Pointer) for name in ("input", "panels", "bias", "begins", "output")),
        *((name, _Int) for name in ("rows", "inputs", "outputs", "input_row", "layers")),
        *((name, _Int) for name in ("type", "threads")),
    ]


class NormStep(ctypes.Structure):
    """`NormStep` in elementwise.cpp, which describes the fields."""

    _fields_ = [
        *((name, _Pointer) for name in ("input", "weight", "output")),
        *((name, _Int) for name in ("rows", "width", "type", "rounds", "threads")),
        *((name, _Float) for name in ("epsilon", "offset")),
    ]


class RotaryStep(ctypes.Structure):
    """`RotaryStep` in elementwise.cpp, which describes the fields."""

    _fields_ = [
        *((name, _Pointer) for name in ("input", "cos", "sin", "output")),
        *((name, _Int) for name in ("input_head", "input_token", "angle_row", "heads", "tokens")),
        *((name, _Int) for name in ("dim", "rotated", "type", "wide_angles", "rounds", "threads")),
    ]


class GatedStep(ctypes.Structure):
    """`GatedStep` in elementwise.cpp, which describes the fields."""

    _fields_ = [
        *((name, _Pointer) for name in ("input", "output")),
        *((name, _Int) for name in ("rows", "width", "type", "activation", "threads")),
    ]


class Library:
    """The functions of a compiled library. Raises `CompilerError` if it cannot be loaded."""

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
        except OSError as error:
            raise compiler.CompilerError(f"cannot load {path}: {error}") from error
        self.attend = library.tdpipe_attend
        self.linear = library.tdpipe_linear
        self.norm = library.tdpipe_norm
        self.rotate = library.tdpipe_rotate
        self.gated = library.tdpipe_gated
        self.read = library.tdpipe_read
        self._packed_elements = library.tdpipe_packed_elements
        self._pack = library.tdpipe_pack
        steps = (self.attend, self.linear, self.norm, self.rotate, self.gated)
        for function in (*steps, self._pack):
            function.restype = None
        for function in (self.read, self._packed_elements):
            function.restype = _Int
        self._packed_elements.argtypes = [_Int, _Int]
        self._pack.argtypes = [_Pointer, _Int, _Int, _Int, _Pointer]

    def pack(self, weights: Tensor) -> Tensor:
        """Return the weights `[layers, outputs, inputs]` as `linear` takes them, by layer."""
        layers, *shape = weights.shape
        size = self._packed_elements(*shape)
        panels = torch.empty(layers, size, dtype=weights.dtype)
        for layer, to in zip(weights, panels, strict=True):
            weight = layer.contiguous()  # must outlive the call
            self._pack(weight.data_ptr(), *shape, TYPES[weight.dtype], to.data_ptr())
        return panels


@lru_cache
def native_library(data_dir: Path) -> Library:
    """The library, compiled into the data folder at the first start. Raises `CompilerError`."""
    return Library(compiler.compiled(data_dir))
