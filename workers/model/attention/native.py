"""The backend `native`: our own C++ kernels on a CPU, one call per layer."""

import ctypes

import torch
from torch import Tensor

from workers.device.upload import Arrays
from workers.kernels.library import CACHE_TYPES, TYPES, AttentionStep, Library
from workers.model.attention.interface import Form, require_one_type
from workers.model.batch import Rows, StepBatch
from workers.model.kv_cache import KvCache


class NativeStep:
    """The context of a step: the arguments that its layers share, and where its KV goes."""

    def __init__(self, library: Library, cache: KvCache, batch: StepBatch) -> None:
        self._library, self._cache = library, cache
        self._rows = rows = batch.rows  # the arguments point into its arrays
        self._arguments = AttentionStep(
            begins=rows.begins.ctypes.data,
            starts=rows.starts.ctypes.data,
            tables=rows.table_begins.ctypes.data,
            blocks=rows.blocks.ctypes.data,
            rows=len(rows.starts),
            block_size=rows.block_size,
            threads=torch.get_num_threads(),
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `workers.model.attention.interface.Attend`."""
        keys, values = self._cache.layers[layer]
        require_one_type(layer, keys.dtype, query, key, value)
        heads, tokens, key_dim = query.shape
        kv_heads, _, value_dim = value.shape
        query, key, value = _packed(query), _packed(key), _packed(value)
        out = query.new_empty(tokens, heads, value_dim)
        to = self._arguments
        to.query, to.query_head, to.query_token = query.data_ptr(), *query.stride()[:2]
        to.key, to.key_head, to.key_token = key.data_ptr(), *key.stride()[:2]
        to.value, to.value_head, to.value_token = value.data_ptr(), *value.stride()[:2]
        to.out, to.keys, to.values = out.data_ptr(), keys.data_ptr(), values.data_ptr()
        to.tokens, to.heads, to.kv_heads = tokens, heads, kv_heads
        to.key_dim, to.value_dim = key_dim, value_dim
        to.type, to.cache_type = TYPES[query.dtype], CACHE_TYPES[keys.dtype]
        to.window, to.chunk = form.sliding_window or 0, form.chunk_size or 0
        to.softcap = form.softcap or 0.0
        to.scale = key_dim**-0.5 if form.scaling is None else form.scaling
        sinks = None if form.sinks is None else form.sinks.float().contiguous()
        to.sinks = None if sinks is None else sinks.data_ptr()
        self._library.attend(ctypes.byref(to))
        return out

    def read(self) -> int:
        """Read what the last layer has read, and nothing else; for benchmarks."""
        return int(self._library.read(ctypes.byref(self._arguments)))


class NativeBackend:
    """Makes the context of each step."""

    name = "native"

    def __init__(self, library: Library) -> None:
        self._library = library

    def arrays(self, _: Rows) -> Arrays:
        """None: the kernels read the rows where they are."""
        return {}

    def step(self, cache: KvCache, batch: StepBatch) -> NativeStep:
        """The context of this step."""
        return NativeStep(self._library, cache, batch)


def _packed(tensor: Tensor) -> Tensor:
    """The same with contiguous elements within a head."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()
