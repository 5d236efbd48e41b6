"""The attention backends: which one a stage uses, and the check that its results are right."""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from configs.schema.pipeline import AttentionBackend
from workers.device.upload import Arrays, upload_to
from workers.kernels import triton_support
from workers.kernels.compiler import CompilerError
from workers.kernels.library import Library
from workers.model.attention.flashinfer import FlashInferBackend, refusal
from workers.model.attention.interface import Attend, Form
from workers.model.attention.native import NativeBackend
from workers.model.attention.plain import PlainBackend
from workers.model.attention.probe import LayerAttention
from workers.model.batch import HostBatch, Rows, StepBatch, send
from workers.model.kv_cache import KvCache, LayerShape

# In the order in which `auto` tries them.
ON_CPUS, ON_GPUS = ("native", "plain"), ("triton", "plain")
# The check's rows: (tokens in the cache, new tokens), in blocks of an odd size. There are a
# prompt, a chunk, and decodes, and each row's tokens fill more than one tile of the kernels.
CHECKED_ROWS = ((0, 33), (150, 21), (201, 1), (64, 1), (0, 1))
# The last token of a chunk is in the middle of the second row.
CHECKED_BLOCK_SIZE, CHECKED_WINDOW, CHECKED_CHUNK = 5, 50, 40
# A normal distribution times this exceeds fp8's largest values, and divided by it is below its
# normal ones, of either type; fp16 still holds nearly all of it.
BEYOND_FP8 = 20_000
# Largest accepted error, as a fraction of the largest result: of the order of the types' rounding.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 2e-2}

log = logging.getLogger("tdpipe")


class Backend(Protocol):
    """An implementation of paged attention."""

    name: str

    def arrays(self, rows: Rows) -> Arrays:
        """The int32 and int64 that a step needs on the device, for `StepBatch.arrays`."""
        ...

    def step(self, cache: KvCache, batch: StepBatch) -> Attend:
        """The context of a step, in which `batch` is written to `cache` and attends to it."""
        ...


class BackendError(Exception):
    """A backend cannot serve this model on this device; the message gives the reason."""


@dataclass(slots=True, frozen=True)
class _Stage:
    """What a backend is made for."""

    layers: Collection[LayerAttention]
    dtype: torch.dtype
    cache_dtype: torch.dtype
    device: torch.device
    native: Callable[[], Library]


def choose(
    wanted: AttentionBackend,
    layers: Collection[LayerAttention],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
    native: Callable[[], Library],
) -> Backend:
    """Return the wanted backend, or for `auto` the fastest one that serves these layers.

    `dtype` is that of the activations, `cache_dtype` that of the KV cache. `native` returns the
    library of CPU kernels or raises `CompilerError`. Raises `BackendError` if the wanted backend
    cannot be used.
    """
    fastest = ON_CPUS if device.type == "cpu" else ON_GPUS
    stage = _Stage(layers, dtype, cache_dtype, device, native)
    reasons = []
    for name in fastest if wanted == "auto" else (wanted,):
        try:
            backend = _MAKERS[name](stage)
            if name != "plain":
                if dtype not in TOLERANCES:
                    raise BackendError(f"it has no kernels for {dtype}")
                check(backend, layers, dtype, cache_dtype, device)
                _compile_variants(backend, stage)
        except BackendError as error:
            reasons.append(f"{name} attention cannot be used: {error}")
            continue
        except Exception as error:  # of Triton or the device: too many kinds to name
            first_line = str(error).strip().partition("\n")[0]
            reasons.append(f"{name} attention cannot be used: {type(error).__name__}: {first_line}")
            continue
        for reason in reasons:
            log.warning("%s", reason)
        return backend
    raise BackendError(reasons[0])


def check(
    backend: Backend,
    layers: Iterable[LayerAttention],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Compare a backend with `plain` on a small problem of each kind of layer.

    Raises `BackendError` where the results differ by more than rounding.
    """
    for kind in _kinds(layers):
        error = _largest_error(backend, kind, dtype, cache_dtype, device)
        if not error <= TOLERANCES[dtype]:  # NaN is an error too
            raise BackendError(f"its results differ from those of plain by {error:.1%}")


def _make_plain(_: _Stage) -> Backend:
    return PlainBackend()


def _make_native(stage: _Stage) -> Backend:
    if stage.device.type != "cpu":
        raise BackendError("it runs on CPUs only")
    try:
        return NativeBackend(stage.native())
    except CompilerError as error:
        raise BackendError(str(error)) from error


def _make_triton(stage: _Stage) -> Backend:
    reason = triton_support.obstacle(stage.device)
    if reason is not None:
        raise BackendError(reason)
    # A late import: Triton is not installed with torch's CPU builds.
    from workers.model.attention.triton import TritonBackend

    return TritonBackend(stage.device)


def _make_flashinfer(stage: _Stage) -> Backend:
    if stage.device.type != "cuda":
        raise BackendError("it runs on GPUs only")
    reason = triton_support.age(stage.device) or refusal(stage.layers, stage.dtype)
    if reason is not None:
        raise BackendError(reason)
    try:
        import flashinfer  # it is optional, and takes seconds
    except ImportError as error:
        raise BackendError(f"FlashInfer is not installed ({error.name})") from error
    return FlashInferBackend(flashinfer, stage.layers, stage.device)


_MAKERS: Mapping[str, Callable[[_Stage], Backend]] = {
    "plain": _make_plain,
    "native": _make_native,
    "triton": _make_triton,
    "flashinfer": _make_flashinfer,
}


def _compile_variants(backend: Backend, stage: _Stage) -> None:
    """Run each variant of Triton's kernels once: one that is compiled in service delays a step."""
    device = stage.device
    if backend.name != "triton" or device.type != "cuda":
        return
    from workers.model.attention.triton import TritonBackend, split_counts

    assert isinstance(backend, TritonBackend)
    batch = _batch(backend, device)
    for layer in _kinds(stage.layers, shorten=False):
        cache = _cache(layer.shape, len(batch.rows.blocks), stage.cache_dtype, device)
        query, key, value = _inputs(layer, batch.num_tokens, stage.dtype, device)
        for splits in split_counts():
            step = backend.step(cache, batch, splits)
            step.attend(0, query, key, value, layer.form)
    torch.cuda.synchronize(device)


def _kinds(layers: Iterable[LayerAttention], *, shorten: bool = True) -> Iterator[LayerAttention]:
    """One layer of each kind; `shorten` its window and chunk to what the check's rows exceed."""
    seen = set()
    for layer in layers:
        form = layer.form
        numbers = (form.scaling, form.sliding_window, form.softcap, form.chunk_size)
        key = (layer.shape, layer.num_heads, numbers, form.sinks is not None)
        if key not in seen:
            seen.add(key)
            window, chunk = form.sliding_window, form.chunk_size
            if shorten:
                window = window and min(window, CHECKED_WINDOW)
                chunk = chunk and min(chunk, CHECKED_CHUNK)
            short = Form(form.scaling, window, form.softcap, form.sinks, chunk)
            yield LayerAttention(layer.shape, layer.num_heads, short)


def _largest_error(
    backend: Backend,
    layer: LayerAttention,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> float:
    """The largest error of a result, as a fraction of the largest result of `plain` in fp32.

    It is NaN where the caches differ afterwards. An fp8 cache is read and written in fp8 by both.
    """
    batch, is_fp8 = _batch(backend, device), cache_dtype != dtype
    cache = _cache(layer.shape, len(batch.rows.blocks), cache_dtype, device)
    exact_dtype = cache_dtype if is_fp8 else torch.float32
    exact = _cache(layer.shape, len(batch.rows.blocks), exact_dtype, device)
    for tensor, wide in zip(cache.layers[0], exact.layers[0], strict=True):
        wide.copy_(tensor)
    query, key, value = _inputs(layer, batch.num_tokens + 2, dtype, device)  # two pad the batch
    got = backend.step(cache, batch).attend(0, query, key, value, layer.form).float()
    plain = PlainBackend().step(exact, _batch(PlainBackend(), device))
    want = plain.attend(0, query.float(), key.float(), value.float(), layer.form)
    are_equal = _hold_the_same(cache, exact)
    if is_fp8:  # what it has only at its ends: values beyond the largest, and denormal ones
        key, value = BEYOND_FP8 * key, value / BEYOND_FP8
        backend.step(cache, batch).attend(0, query, key, value, layer.form)
        plain.attend(0, query.float(), key.float(), value.float(), layer.form)
        are_equal &= _hold_the_same(cache, exact)
    return float((got - want).abs().max() / want.abs().max()) if are_equal else float("nan")


def _hold_the_same(cache: KvCache, other: KvCache) -> bool:
    pairs = zip(cache.layers[0], other.layers[0], strict=True)
    return all(torch.equal(tensor.float(), wide.float()) for tensor, wide in pairs)


def _cache(shape: LayerShape, num_blocks: int, dtype: torch.dtype, device: torch.device) -> KvCache:
    """A cache of one layer, full of random numbers."""
    cache = KvCache({0: shape}, num_blocks, CHECKED_BLOCK_SIZE, dtype, device)
    for tensor in cache.layers[0]:
        tensor.copy_(_random(tensor.shape, torch.float32, device))
    return cache


def _inputs(
    layer: LayerAttention, num_tokens: int, dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """Random queries, keys and values, in the layout that transformers gives them."""
    sizes = (
        (layer.num_heads, layer.shape.key_dim),
        (layer.shape.num_kv_heads, layer.shape.key_dim),
        (layer.shape.num_kv_heads, layer.shape.value_dim),
    )
    return [_random((num_tokens, *size), dtype, device).transpose(0, 1) for size in sizes]


def _random(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    make = torch.Generator(device).manual_seed(len(size) + sum(size))
    return torch.randn(*size, generator=make, device=device).to(dtype)


def _batch(backend: Backend, device: torch.device) -> StepBatch:
    starts, counts = (np.array(column, np.int64) for column in zip(*CHECKED_ROWS, strict=True))
    num_blocks = -(-(starts + counts) // CHECKED_BLOCK_SIZE)
    begins = np.concatenate([[0], np.cumsum(counts)])
    table_begins = np.concatenate([[0], np.cumsum(num_blocks)])
    blocks = np.random.default_rng(0).permutation(table_begins[-1]).astype(np.int32)
    tokens = np.zeros(begins[-1], np.int64)
    rows = Rows(begins, starts, table_begins[:-1], blocks, CHECKED_BLOCK_SIZE)
    host = HostBatch(tokens, tokens, tokens + 1, tokens[:0], 0, rows)
    return send(host, upload_to(device), backend.arrays)
