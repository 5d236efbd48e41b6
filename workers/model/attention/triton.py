"""The backend `triton`: our own kernels for GPUs, which need nothing but torch's Triton.

Its integers go to the device with those of the step; a layer takes two to four launches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.device.upload import to_device
from workers.kernels import triton_attention as kernels
from workers.kernels.triton_support import is_interpreted
from workers.model.attention.interface import Form, require_one_type
from workers.model.batch import Rows, StepBatch
from workers.model.kv_cache import KvCache

# Padding of the numbers of tokens, rows and tiles, so that few different grids exist.
PADDING = 16
# Each program of a decode should have at least this many tokens, and each multiprocessor at least
# this many programs: more splits make a short context slower, fewer leave multiprocessors idle.
TOKENS_PER_SPLIT, PROGRAMS_PER_MULTIPROCESSOR, MOST_SPLITS = 256, 2, 32
# How the kernels name the types of the KV cache besides that of the activations.
KV_FORMATS = {torch.float8_e4m3fn: kernels.E4M3.value, torch.float8_e5m2: kernels.E5M2.value}
# Where there is no GPU the kernels run in Triton's interpreter, for tests.
INTERPRETED_MULTIPROCESSORS = 8


@dataclass(slots=True, frozen=True)
class Tiles:
    """The tile sizes of a kernel: query lanes (tokens x heads of a group) and tokens of the cache.

    They fit the shared memory of every GPU since Ampere, of which the smallest has 99 KiB, and
    spill no registers (`make triton-table`).
    """

    lanes: int
    tokens: int
    num_warps: int
    num_stages: int


def prefill_tiles(widest: int, itemsize: int, kv_format: int = 0) -> Tiles:
    """The tiles of rows of several tokens, for heads of up to `widest` values, a power of two.

    `itemsize` is that of the activations. The conversion of fp8 takes registers.
    """
    if itemsize == 4:
        return Tiles(32, 32 if widest == 128 else 16, 8, 1)
    if widest <= 128:
        return Tiles(128, 32 if widest == 128 and kv_format else 64, 8, 2)
    return Tiles(32, 16, 4, 2) if kv_format else Tiles(64, 32, 8, 2)


def decode_tiles(widest: int, itemsize: int, group: int) -> Tiles:
    """The tiles of rows of one token; Triton's smallest matrix has 16 rows."""
    lanes = max(16, width_of(group))
    if itemsize == 4:
        return Tiles(lanes, 32, 4, 1) if widest <= 128 else Tiles(lanes, 16, 4, 2)
    return Tiles(lanes, 64 if widest <= 128 else 32, 4, 2)


class TritonStep:
    """The context of a step: its integers on the device, and how they are cut into programs."""

    def __init__(
        self,
        cache: KvCache,
        batch: StepBatch,
        num_multiprocessors: int,
        tile_sizes: set[int],
        splits: int | None = None,
    ) -> None:
        """`splits` overrides the number of parts of a decode row's tokens."""
        self._cache, self._batch, self._splits = cache, batch, splits
        self._num_multiprocessors, self._tile_sizes = num_multiprocessors, tile_sizes
        self._arrays = batch.arrays
        counts = np.diff(batch.rows.begins)
        self._has_long = bool((counts > 1).any())
        lengths = (batch.rows.starts + 1)[counts == 1]
        self._num_decoding, self._longest = len(lengths), int(lengths.max(initial=0))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """See `workers.model.attention.interface.Attend`."""
        keys, values = self._cache.layers[layer]
        require_one_type(layer, keys.dtype, query, key, value)
        kv_format = KV_FORMATS.get(keys.dtype, 0)
        if kv_format:
            keys, values = keys.view(torch.uint8), values.view(torch.uint8)
        heads, tokens, key_dim = query.shape
        kv_heads, _, value_dim = value.shape
        query, key, value = (t if t.stride(2) == 1 else t.contiguous() for t in (query, key, value))
        out = query.new_empty(tokens, heads, value_dim)
        shape = {
            "KV_HEADS": kv_heads,
            "BLOCK_SIZE": self._batch.rows.block_size,
            "KEY_DIM": key_dim,
            "VALUE_DIM": value_dim,
            "KEY_WIDTH": max(16, width_of(key_dim)),
            "VALUE_WIDTH": max(16, width_of(value_dim)),
            "KV_FORMAT": kv_format,
        }
        arrays = self._arrays
        slots, strides = arrays["slots"], (*key.stride()[:2], *value.stride()[:2])
        kernels.write_kv[(len(slots), kv_heads)](key, value, keys, values, slots, *strides, **shape)
        sinks = out if form.sinks is None else form.sinks.float()
        scale = key_dim**-0.5 if form.scaling is None else form.scaling
        common = (*(arrays[name] for name in ("begins", "starts", "tables", "blocks")),)
        numbers = (*query.stride()[:2], scale, form.softcap or 1.0)
        variant = shape | {
            "GROUP": heads // kv_heads,
            "WINDOW": form.sliding_window or 0,
            "CHUNK": form.chunk_size or 0,
            "HAS_SOFTCAP": form.softcap is not None,
            "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
            "UPCAST": is_interpreted(),
        }
        widest = max(shape["KEY_WIDTH"], shape["VALUE_WIDTH"])
        if self._has_long:
            self._attend_long(query, keys, values, out, sinks, common, numbers, variant, widest)
        if self._num_decoding:
            self._attend_decodes(query, keys, values, out, sinks, common, numbers, variant, widest)
        count = self._batch.num_tokens
        if tokens > count:
            out[count:] = out[count - 1]  # exact copies go to the same experts
        return out

    def _attend_long(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        sinks: Tensor,
        common: tuple[Tensor, ...],
        numbers: tuple[Any, ...],
        variant: dict[str, Any],
        widest: int,
    ) -> None:
        tiles = prefill_tiles(widest, query.element_size(), variant["KV_FORMAT"])
        lanes = max(tiles.lanes, width_of(variant["GROUP"]))
        tokens = lanes // variant["GROUP"]
        tile_rows, tile_begins = self._tiles(tokens)
        kernels.attend_tiles[(len(tile_rows), variant["KV_HEADS"])](
            query,
            keys,
            values,
            out,
            sinks,
            tile_rows,
            tile_begins,
            *common,
            *numbers,
            **variant,
            HAS_SINKS=sinks is not out,
            TOKENS=tokens,
            LANES=lanes,
            TILE=tiles.tokens,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )

    def _attend_decodes(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        out: Tensor,
        sinks: Tensor,
        common: tuple[Tensor, ...],
        numbers: tuple[Any, ...],
        variant: dict[str, Any],
        widest: int,
    ) -> None:
        tiles = decode_tiles(widest, query.element_size(), variant["GROUP"])
        rows = self._arrays["decode_rows"]
        heads, value_dim = out.shape[1:]
        programs = self._num_decoding * variant["KV_HEADS"]
        length = min(self._longest, *(variant[n] or self._longest for n in ("WINDOW", "CHUNK")))
        splits = self._splits or num_splits(programs, length, self._num_multiprocessors)
        parts = out.new_empty(len(rows), heads, splits, value_dim, dtype=torch.float32)
        tops = out.new_empty(len(rows), heads, splits, 2, dtype=torch.float32)
        kernels.attend_splits[(len(rows), variant["KV_HEADS"], splits)](
            query,
            keys,
            values,
            parts,
            tops,
            rows,
            *common,
            *numbers,
            **variant,
            SPLITS=splits,
            LANES=tiles.lanes,
            TILE=tiles.tokens,
            num_warps=tiles.num_warps,
            num_stages=tiles.num_stages,
        )
        kernels.combine_splits[(len(rows), heads)](
            parts,
            tops,
            out,
            sinks,
            rows,
            self._arrays["begins"],
            HEADS=heads,
            VALUE_DIM=value_dim,
            VALUE_WIDTH=variant["VALUE_WIDTH"],
            HAS_SINKS=sinks is not out,
            SPLITS=splits,
            SPLIT_WIDTH=width_of(splits),
        )

    def _tiles(self, tokens: int) -> tuple[Tensor, Tensor]:
        """The row of each tile of this many tokens, and the tile's first token in it."""
        names = _tile_names(tokens)
        if names[0] not in self._arrays:
            # Only before the backend has met this size: the check at the start meets all of them.
            self._tile_sizes.add(tokens)
            device = self._batch.token_ids.device
            for name, array in _tiles_of(self._batch.rows, tokens).items():
                self._arrays[name] = to_device(array, device)
        return self._arrays[names[0]], self._arrays[names[1]]


class TritonBackend:
    """Makes the context of each step."""

    name = "triton"

    def __init__(self, device: torch.device) -> None:
        self._num_multiprocessors = (
            torch.cuda.get_device_properties(device).multi_processor_count
            if device.type == "cuda"
            else INTERPRETED_MULTIPROCESSORS
        )
        self._tile_sizes: set[int] = set()  # in tokens, of the kinds of layers so far

    def arrays(self, rows: Rows) -> dict[str, np.ndarray]:
        """See `workers.model.attention.backends.Backend`; the lengths are padded."""
        counts = np.diff(rows.begins)
        decoding = np.flatnonzero(counts == 1)
        arrays = {
            "begins": rows.begins.astype(np.int32),
            "starts": rows.starts.astype(np.int32),
            "tables": rows.table_begins.astype(np.int32),
            "slots": _padded(rows.new_slots(), PADDING),
            "decode_rows": _padded(decoding, PADDING if len(decoding) else 1),
        }
        if len(decoding) < len(counts):
            for tokens in self._tile_sizes:
                arrays |= _tiles_of(rows, tokens)
        arrays["blocks"] = rows.blocks.astype(np.int32)  # last: its length is not padded
        return arrays

    def decode_lengths(self, num_rows: int, kv_heads: int, most: int) -> list[int]:
        """See `workers.model.decode_graphs.GraphBackend`: where `num_splits` changes."""
        programs, processors = num_rows * kv_heads, self._num_multiprocessors
        return [
            1 if splits == 1 else splits * TOKENS_PER_SPLIT
            for splits in split_counts()
            if num_splits(programs, most, processors) >= splits
        ]

    def step(self, cache: KvCache, batch: StepBatch, splits: int | None = None) -> TritonStep:
        """The context of this step; `splits` overrides the number of parts of a decode row."""
        return TritonStep(cache, batch, self._num_multiprocessors, self._tile_sizes, splits)


def _tile_names(tokens: int) -> tuple[str, str]:
    return f"rows of tiles of {tokens}", f"begins of tiles of {tokens}"


def _tiles_of(rows: Rows, tokens: int) -> dict[str, np.ndarray]:
    """The row of each tile of this many tokens, and the tile's first token in it."""
    counts = np.diff(rows.begins)
    num_tiles = -(-counts * (counts > 1) // tokens)
    of_row = np.repeat(np.arange(len(counts)), num_tiles)
    numbers = np.arange(len(of_row)) - np.repeat(np.cumsum(num_tiles) - num_tiles, num_tiles)
    both = _padded(of_row, PADDING), _padded(numbers * tokens, PADDING)
    return dict(zip(_tile_names(tokens), both, strict=True))


def split_counts() -> list[int]:
    """All numbers of parts that `num_splits` may return; each is a variant of the kernels."""
    return [1 << power for power in range(MOST_SPLITS.bit_length())]


def num_splits(num_programs: int, longest: int, num_multiprocessors: int) -> int:
    """Into how many parts the tokens of a decode row are split; a power of two.

    As many as keep the device busy, but no more than the context is worth.
    """
    wanted = PROGRAMS_PER_MULTIPROCESSOR * num_multiprocessors // max(1, num_programs)
    most = min(wanted, longest // TOKENS_PER_SPLIT, MOST_SPLITS)
    return 1 << (max(1, most).bit_length() - 1)


def width_of(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def _padded(values: np.ndarray, step: int) -> np.ndarray:
    """The values as int32, and -1 up to a multiple of `step`."""
    padding = np.full(-len(values) % step, -1, np.int32)
    return np.concatenate([values.astype(np.int32), padding])
