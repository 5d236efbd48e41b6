"""The rotary embedding as a kernel for queries and keys.

transformers' families call a function `apply_rotary_pos_emb` of their own module. During a forward
pass, a `FusedRotary` takes its place there.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from workers.kernels.library import TYPES
from workers.model.fused.operations import FusedOperations
from workers.model.fused.same import first_line, is_same, random_values

FUNCTION = "apply_rotary_pos_emb"
COMPARED_TOKENS = 9

log = logging.getLogger("tdpipe")

Rotate = Callable[..., tuple[Tensor, Tensor]]
# What a call's result depends on, beside the values: shapes of the heads, types.
Signature = tuple[Any, ...]


class FusedRotary:
    """A drop-in for a family's function: fused where that gives the same results, else the same.

    The first call with inputs of a new kind compares the two on random values.
    """

    def __init__(self, original: Rotate, operations: FusedOperations) -> None:
        self._original, self._operations = original, operations
        self._rounds: dict[Signature, bool | None] = {}  # None: not fused

    def __call__(self, *inputs: Any, **named: Any) -> tuple[Tensor, Tensor]:
        """Rotate queries `[1, heads, tokens, dim]` and keys by `[1, tokens, rotated]` angles."""
        if named or len(inputs) != 4 or not _is_usual(*inputs):
            return self._original(*inputs, **named)
        q, k, cos, sin = inputs
        heads = (q.shape[1::2], k.shape[1::2])
        signature = (*heads, cos.shape[2], q.dtype, cos.dtype)
        if signature not in self._rounds:
            if _is_captured(q.device):  # a comparison would wait for the device
                return self._original(q, k, cos, sin)
            self._rounds[signature] = self._compare(*signature, q.device)
        rounds = self._rounds[signature]
        if rounds is None:
            return self._original(q, k, cos, sin)
        return self._operations.rotate(q, k, cos, sin, rounds)

    @property
    def is_used(self) -> bool:
        """Whether any inputs so far were rotated by the kernel."""
        return any(rounds is not None for rounds in self._rounds.values())

    def _compare(
        self,
        query_shape: tuple[int, int],
        key_shape: tuple[int, int],
        rotated: int,
        dtype: torch.dtype,
        angle_dtype: torch.dtype,
        device: torch.device,
    ) -> bool | None:
        """Whether the family rounds the products before it adds them; None: it differs."""
        q, k = (
            random_values(1, heads, COMPARED_TOKENS, dim, device=device).to(dtype)
            for heads, dim in (query_shape, key_shape)
        )
        angles = random_values(2, 1, COMPARED_TOKENS, rotated, device=device)
        cos, sin = angles.to(angle_dtype)
        try:
            wanted = self._original(q, k, cos, sin)
        except Exception:  # e.g. the family rotates other shapes, after a split of the heads
            return None
        try:
            for rounds in (True, False):
                got = self._operations.rotate(q, k, cos, sin, rounds)
                if all(is_same(*pair) for pair in zip(got, wanted, strict=True)):
                    return rounds
        except Exception as error:  # of Triton or the device: too many kinds to name
            log.warning("the rotary embedding is not fused: %s", first_line(error))
        return None


class RotaryFunctions:
    """The rotary functions of a model's modules, and those that replace them in a forward pass."""

    def __init__(
        self, model: nn.Module | None = None, operations: FusedOperations | None = None
    ) -> None:
        self._fused: list[tuple[ModuleType, FusedRotary]] = []
        if model is None or operations is None:
            return
        names = dict.fromkeys(type(module).__module__ for module in model.modules())
        for module in filter(None, map(sys.modules.get, names)):
            if callable(original := getattr(module, FUNCTION, None)):
                self._fused.append((module, FusedRotary(original, operations)))

    @property
    def is_used(self) -> bool:
        """Whether a forward pass so far has rotated by the kernel."""
        return any(fused.is_used for _, fused in self._fused)

    @contextmanager
    def replaced(self) -> Iterator[None]:
        """Replace the functions while the context lasts."""
        originals = [(module, getattr(module, FUNCTION)) for module, _ in self._fused]
        for module, fused in self._fused:
            setattr(module, FUNCTION, fused)
        try:
            yield
        finally:
            for module, original in originals:
                setattr(module, FUNCTION, original)


def _is_captured(device: torch.device) -> bool:
    """Whether launches are recorded for a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _is_usual(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether the kernel can read these tensors; their meaning is compared, see `FusedRotary`."""
    return (
        q.ndim == k.ndim == 4
        and cos.ndim == sin.ndim == 3
        and q.shape[0] == k.shape[0] == cos.shape[0] == 1
        and q.shape[2] == k.shape[2] == cos.shape[1]
        and cos.shape == sin.shape
        and cos.shape[2] <= min(q.shape[3], k.shape[3])
        and q.dtype == k.dtype
        and q.dtype in TYPES
        and cos.dtype == sin.dtype
        and cos.dtype in (q.dtype, torch.float32)
        and q.stride(3) == k.stride(3) == cos.stride(2) == sin.stride(2) == 1
        and cos.stride() == sin.stride()
    )
