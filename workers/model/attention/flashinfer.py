"""The backend `flashinfer`: the FlashInfer library's kernels for GPUs, where it is installed.

FlashInfer compiles its kernels with nvcc at their first use. A wrapper of its plans once per step
how the rows are cut into thread blocks, and then runs in every layer of the kind it planned for.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workers.device.upload import Arrays
from workers.model.attention.interface import Form
from workers.model.attention.probe import LayerAttention
from workers.model.batch import Rows, StepBatch
from workers.model.kv_cache import KvCache, stored

# Both kinds of kernels exist for these; with others FlashInfer fails when it compiles them.
HEAD_SIZES = (64, 128, 256)
TYPES = (torch.bfloat16, torch.float16)
# Of intermediate results, shared by all wrappers. Zeros, and as large as in SGLang: the 128 MiB of
# FlashInfer's examples are too small for some models.
WORKSPACE_BYTES = 384 << 20
# `[blocks, KV heads, block size, dim]`, keys and values in tensors of their own.
LAYOUT = "HND"
# The decode kernels without tensor cores exist for groups of 1, 2, 3, 4 and 8 query heads.
LARGEST_GROUP_WITHOUT_TENSOR_CORES = 4


class Kind(NamedTuple):
    """What the layers that share a plan have in common."""

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int | None
    softcap: float | None


def kind_of(heads: int, kv_heads: int, head_dim: int, form: Form) -> Kind:
    """The kind of a layer."""
    scale = head_dim**-0.5 if form.scaling is None else form.scaling
    return Kind(heads, kv_heads, head_dim, scale, form.sliding_window, form.softcap)


def refusal(layers: Collection[LayerAttention], dtype: torch.dtype) -> str | None:
    """Why FlashInfer cannot serve these layers, or None where it may."""
    if dtype not in TYPES:
        return f"it has no kernels for {dtype}"
    for layer in layers:
        key_dim, value_dim = layer.shape.key_dim, layer.shape.value_dim
        if layer.form.sinks is not None:
            return "it has no kernels with attention sinks"
        if layer.form.chunk_size is not None:
            return "it has no kernels with attention in chunks"
        if key_dim != value_dim:
            return f"it has no kernels for keys of {key_dim} and values of {value_dim}"
        if key_dim not in HEAD_SIZES:
            return f"it has no kernels for heads of {key_dim}"
    return None


class FlashInferBackend:
    """Makes the context of each step, and keeps the wrappers with their memory."""

    name = "flashinfer"

    def __init__(
        self, library: Any, layers: Collection[LayerAttention], device: torch.device
    ) -> None:
        """`library` is the module `flashinfer`; `layers` are all that will attend."""
        self._library, self._device = library, device
        self._workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._wrappers: dict[tuple[int, bool, bool], _Wrapper] = {}
        # Now, because the KV cache will take the memory that is left.
        kinds = {
            kind_of(layer.num_heads, layer.shape.num_kv_heads, layer.shape.key_dim, layer.form)
            for layer in layers
        }
        for number, kind in enumerate(sorted(kinds, key=str)):
            for is_decode in (True, False):
                self.wrapper(number, kind, is_decode=is_decode)

    def arrays(self, rows: Rows) -> Arrays:
        """See `workers.model.attention.backends.Backend`."""
        counts = np.diff(rows.begins)
        within = np.arange(rows.begins[-1]) - np.repeat(rows.begins[:-1], counts)
        parts = _paged(rows) | {
            "row_of_token": np.repeat(np.arange(len(counts)), counts),
            "positions": np.repeat(rows.starts, counts) + within,
        }
        return {name: part.astype(np.int32) for name, part in parts.items()}

    def step(self, cache: KvCache, batch: StepBatch) -> "FlashInferStep":
        """The context of this step."""
        return FlashInferStep(self, self._library, cache, batch)

    def wrapper(self, number: int, kind: Kind, *, is_decode: bool) -> "_Wrapper":
        """The wrapper of the step's kind number `number`."""
        needs_tensor_cores = kind.heads // kind.kv_heads > LARGEST_GROUP_WITHOUT_TENSOR_CORES
        key = (number, is_decode, is_decode and needs_tensor_cores)
        if key not in self._wrappers:
            make = self._library
            inner = (
                make.BatchDecodeWithPagedKVCacheWrapper(
                    self._workspace, LAYOUT, use_tensor_cores=needs_tensor_cores
                )
                if is_decode
                else make.BatchPrefillWithPagedKVCacheWrapper(self._workspace, LAYOUT)
            )
            self._wrappers[key] = _Wrapper(inner, self._device)
        return self._wrappers[key]


class _Wrapper:
    """A wrapper of FlashInfer, which is planned again only when its last plan has left the host.

    A plan is copied to the device from a pinned buffer of the wrapper without waiting. If the next
    step planned before that copy was made, the device would get the wrong plan.
    """

    def __init__(self, inner: Any, device: torch.device) -> None:
        self._inner = inner
        is_cuda = device.type == "cuda"
        self._copied = torch.cuda.Event() if is_cuda else None  # type: ignore[no-untyped-call]

    def plan(self, *tensors: Tensor, **settings: Any) -> None:
        """FlashInfer's `plan`."""
        if self._copied is not None:
            self._copied.synchronize()
        self._inner.plan(*tensors, **settings)
        if self._copied is not None:
            self._copied.record()

    def run(self, query: Tensor, cache: tuple[Tensor, Tensor], out: Tensor) -> None:
        """FlashInfer's `run`, `[tokens, heads, dim]` to the same shape."""
        self._inner.run(query, cache, out=out)


class FlashInferStep:
    """The context of a step: its integers on host and device, and a plan per kind of layer."""

    def __init__(
        self, backend: FlashInferBackend, library: Any, cache: KvCache, batch: StepBatch
    ) -> None:
        self._backend, self._library = backend, library
        self._cache, self._batch = cache, batch
        # td-pipe's steps are all prefill or all decode. In a mixed step, as of policy hybrid, the
        # prefill kernels serve the rows of one token too.
        self._is_decode = bool((np.diff(batch.rows.begins) == 1).all())
        # Plans are made on the host: there, the library need not wait for the device.
        parts = _paged(batch.rows) | {"row_begins": batch.rows.begins}
        self._host = {n: torch.from_numpy(part.astype(np.int32)) for n, part in parts.items()}
        self._planned: dict[Kind, _Wrapper] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `workers.model.attention.interface.Attend`."""
        keys, values = self._cache.layers[layer]
        heads, tokens, head_dim = query.shape
        count = self._batch.num_tokens
        new_key, new_value = (stored(_by_token(t, count), keys.dtype) for t in (key, value))
        self._append(new_key, new_value, keys, values)
        kind = kind_of(heads, key.shape[0], head_dim, form)
        if kind not in self._planned:
            self._planned[kind] = self._plan(kind, query.dtype)
        out = query.new_empty(tokens, heads, head_dim)
        self._planned[kind].run(_by_token(query, count), (keys, values), out[:count])
        if tokens > count:
            out[count:] = out[count - 1]  # exact copies go to the same experts
        return out

    def _append(self, key: Tensor, value: Tensor, keys: Tensor, values: Tensor) -> None:
        arrays = self._batch.arrays
        self._library.append_paged_kv_cache(
            key,
            value,
            arrays["row_of_token"],
            arrays["positions"],
            (keys, values),
            arrays["blocks"],
            arrays["table_begins"],
            arrays["last_lengths"],
            kv_layout=LAYOUT,
        )

    def _plan(self, kind: Kind, dtype: torch.dtype) -> _Wrapper:
        wrapper = self._backend.wrapper(len(self._planned), kind, is_decode=self._is_decode)
        tables = (
            self._host["table_begins"],
            self._batch.arrays["blocks"],
            self._host["last_lengths"],
        )
        settings: dict[str, Any] = {
            "num_qo_heads": kind.heads,
            "num_kv_heads": kind.kv_heads,
            "page_size": self._batch.rows.block_size,
            "sm_scale": kind.scale,
            # FlashInfer counts the tokens before a token, a window includes the token itself.
            "window_left": kind.window - 1 if kind.window else -1,
            "logits_soft_cap": kind.softcap or 0.0,
            "q_data_type": dtype,
            "kv_data_type": self._cache.dtype,
        }
        if self._is_decode:
            wrapper.plan(*tables, head_dim=kind.head_dim, **settings)
        else:
            rows = self._host["row_begins"]
            wrapper.plan(rows, *tables, head_dim_qk=kind.head_dim, causal=True, **settings)
        return wrapper


def _paged(rows: Rows) -> dict[str, np.ndarray]:
    """The blocks of each row, as FlashInfer describes them."""
    counts = np.diff(rows.begins)
    return {
        "table_begins": np.append(rows.table_begins, len(rows.blocks)),
        "last_lengths": (rows.starts + counts - 1) % rows.block_size + 1,
        "blocks": rows.blocks,
    }


def _by_token(heads: Tensor, count: int) -> Tensor:
    """The first `count` tokens of `[heads, tokens, dim]` as `[tokens, heads, dim]`."""
    return heads.transpose(0, 1)[:count].contiguous()
