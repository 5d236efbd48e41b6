"""CUDA graphs of decode steps: all launches of a step are replayed by one call.

A graph repeats the same kernels on the same memory. There is one for each padded number of rows and
each number of parts into which a row's context is split, because both fix the grids. A step copies
its integers and activations into static memory, replays, and finds its output in static memory.
Receiving, sending and sampling stay outside. The last rows of a padded step belong to no sequence:
they write to no slot and attend to one token that another row can see.
"""

import logging
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from workers.device.events import waiting_is_an_error
from workers.device.upload import Arrays, PackedUpload, layout
from workers.model.attention.backends import TOLERANCES, Backend
from workers.model.attention.interface import Attend
from workers.model.batch import HostBatch, Rows, StepBatch, arrays_of_step, send
from workers.model.kv_cache import KvCache
from workers.model.stage_model import StageModel

# Steps of more rows than vLLM's largest graph too are limited by memory, not by launches.
MOST_ROWS = 512
# Room for the block tables of a step, in blocks; a step with longer ones runs without a graph.
MOST_BLOCKS = 1 << 22

log = logging.getLogger("tdpipe")

Key = tuple[int, int]
"""The rows of a graph, and the length in tokens from which on its splits are used."""


class GraphError(Exception):
    """The steps of this stage cannot be captured; the message gives the reason."""


@dataclass(slots=True, frozen=True)
class GraphLimits:
    """The largest step of a stage: its rows, and the tokens of a sequence."""

    max_rows: int
    max_model_len: int


@runtime_checkable
class GraphBackend(Protocol):
    """An attention backend whose decode steps can be captured.

    Its arrays have lengths that depend on the number of rows only, except for the last array, and
    its launches on nothing but the number of rows and the range in which the longest row is.
    """

    def decode_lengths(self, num_rows: int, kv_heads: int, most: int) -> list[int]:
        """The lengths up to `most` tokens, ascending from 1, at which the launches change."""
        ...


class Capture(Protocol):
    """Records what a function queues on the device."""

    def __call__(self, run: Callable[[], None]) -> Callable[[], object]:
        """Return a function that queues the same again. Raises what `run` or the device raises."""
        ...

    def used_bytes(self) -> int:
        """The memory of the device that is in use."""
        ...


class CudaCapture:
    """CUDA graphs that share one pool of memory; the largest should be captured first."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Callable[[], None]) -> Callable[[], object]:
        """See `Capture`; the function runs once before, as compilers and libraries start lazily."""
        with waiting_is_an_error():  # what waits cannot be captured: it is told here
            run()
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        with torch.cuda.stream(self._stream):
            # Other threads, of the heartbeat and of NCCL, ask for events meanwhile.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                run()
            except BaseException:
                with suppress(RuntimeError):  # the capture is lost, and this would hide the reason
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay

    def used_bytes(self) -> int:
        """See `Capture`; memory that torch only keeps for later is given back before."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self._device)
        return total - free


@dataclass(slots=True, frozen=True)
class DecodeBatch:
    """A step whose numbers are in the static memory of the graph that will run it.

    Each of its rows samples.
    """

    key: Key
    num_sampling: int


class DecodeGraphs:
    """The graphs of one stage.

    Raises `GraphError` for an attention backend that cannot be captured.
    """

    def __init__(
        self,
        model: StageModel,
        attention: Backend,
        cache: KvCache,
        block_size: int,
        upload: PackedUpload,
        capture: Capture,
        limits: GraphLimits,
    ) -> None:
        if not isinstance(attention, GraphBackend):
            raise GraphError(f"the attention backend {attention.name} cannot be captured")
        self._model, self._attention, self._cache = model, attention, cache
        self._block_size, self._upload, self._capture = block_size, upload, capture
        self._arrays_of: Callable[[Rows], Arrays] = attention.arrays
        sizes = padded_sizes(min(limits.max_rows, MOST_ROWS))
        keys, values = zip(*cache.layers.values(), strict=True)
        self._num_blocks = len(keys[0])
        kv_heads = min(tensor.shape[1] for tensor in keys + values)
        self._lengths = {
            size: attention.decode_lengths(size, kv_heads, limits.max_model_len) for size in sizes
        }
        self._replays: dict[Key, Callable[[], object]] = {}
        longest = -(-limits.max_model_len // block_size)
        most_blocks = min(sizes[-1] * longest, MOST_BLOCKS) + sizes[-1] + longest
        _, num_bytes = layout(arrays_of_step(self._example(sizes[-1], 1), self._arrays_of))
        device = keys[0].device
        self._packed = torch.zeros(num_bytes + 4 * most_blocks, dtype=torch.uint8, device=device)
        self._received = torch.zeros(sizes[-1], model.input_width, dtype=model.dtype, device=device)
        output = self._forward(*self._load(self._example(sizes[-1], 1)))
        # One for all graphs: logits of 512 rows are 150 MB with a vocabulary of 150,000.
        self._output = torch.zeros_like(output)

    @property
    def keys(self) -> list[Key]:
        """All graphs there should be, the largest first, so that the others fit its memory."""
        found = ((size, length) for size, lengths in self._lengths.items() for length in lengths)
        return sorted(found, reverse=True)

    def capture(self, key: Key) -> None:
        """Capture a graph, and compare its replay with a step that runs without one.

        The KV cache must be unused, and gets random contents. Raises `GraphError` where the results
        differ, and what the model or the device raises where it cannot be captured.
        """
        size, length = key
        num_used = size + -(-length // self._block_size)
        self._cache.randomise(num_used)
        inputs, context = self._load(self._example(size, length))
        self._replays[key] = self._capture(lambda: self._run(inputs, context))
        inputs, context = self._load(self._example(size, length, seed=1))
        self._received.normal_()
        self._run(inputs, context)
        want = self._output[:size].clone()
        self._output.zero_()
        self._replays[key]()
        # Logits of a padded vocabulary are infinite.
        got, want = self._output[:size].nan_to_num(0, 0, 0), want.nan_to_num(0, 0, 0)
        error = (got - want).abs().max() / want.abs().max()
        if not error <= TOLERANCES[self._model.dtype]:
            raise GraphError(f"the graph of {size} rows is off by {float(error):.1%}")

    def prepare(self, host: HostBatch) -> DecodeBatch | None:
        """Bring the numbers of a step into static memory, if a graph fits it."""
        num_rows, sizes = len(host.rows.starts), list(self._lengths)
        if not is_decode(host) or num_rows > sizes[-1] or len(host.rows.blocks) > MOST_BLOCKS:
            return None
        size = sizes[bisect_left(sizes, num_rows)]
        lengths = self._lengths[size]
        key = (size, lengths[bisect_right(lengths, int(host.rows.starts.max()) + 1) - 1])
        if key not in self._replays:
            return None
        self._upload.fill(arrays_of_step(padded(host, size), self._arrays_of), self._packed)
        return DecodeBatch(key, num_rows)

    def run(self, inputs: DecodeBatch, received: Tensor | None) -> Tensor:
        """Replay the graph; the next replay overwrites the result, see `StepRunner.run`."""
        if received is not None:
            self._received[: len(received)].copy_(received)
        self._replays[inputs.key]()
        return self._output[: inputs.num_sampling]

    def _load(self, host: HostBatch) -> tuple[StepBatch, Attend]:
        inputs = send(host, self._upload, self._arrays_of, self._packed)
        return inputs, self._attention.step(self._cache, inputs)

    def _run(self, inputs: StepBatch, context: Attend) -> None:
        self._output[: inputs.num_tokens].copy_(self._forward(inputs, context))

    def _forward(self, inputs: StepBatch, context: Attend) -> Tensor:
        received = None if self._model.is_first else self._received[: inputs.num_tokens]
        return self._model.forward(
            inputs.token_ids,
            inputs.position_ids,
            inputs.output_at,
            context,
            received,
            inputs.rope_lens,
        )

    def _example(self, size: int, length: int, seed: int | None = None) -> HostBatch:
        """A step of rows of this length; with a seed of random tokens, and one padding row."""
        num_real = size if seed is None else max(1, min(size - 1, self._num_blocks))
        per_row = -(-length // self._block_size)
        rows = Rows(
            np.arange(num_real + 1),
            np.full(num_real, length - 1),
            np.arange(num_real),  # each row shares all blocks but one with the next
            (np.arange(num_real + per_row - 1) % self._num_blocks).astype(np.int32),
            self._block_size,
        )
        tokens = np.zeros(num_real, np.int64)
        if seed is not None:
            tokens = np.random.default_rng(seed).integers(self._model.vocab_size, size=num_real)
        lens = rows.starts + 1
        return padded(HostBatch(tokens, rows.starts, lens, rows.begins[:-1], num_real, rows), size)


def capture_all(
    make: Callable[[], DecodeGraphs], used_bytes: Callable[[], int], show: "ShowProgress"
) -> DecodeGraphs | None:
    """Make and capture all graphs; None, and a warning, if that fails: steps then run without."""
    began_at, began_bytes = time.monotonic(), used_bytes()
    try:
        graphs = make()
        for key in show(graphs.keys):
            graphs.capture(key)
    except Exception as error:  # of any model's code, of Triton or the device
        log.warning("decode steps run without CUDA graphs: %s", _first_line(error))
        return None
    log.info(
        "captured %d CUDA graphs of up to %d rows in %.1f s, %.2f GiB",
        len(graphs.keys),
        graphs.keys[0][0],
        time.monotonic() - began_at,
        (used_bytes() - began_bytes) / (1 << 30),
    )
    return graphs


ShowProgress = Callable[[list[Key]], Iterable[Key]]
"""Shows a progress bar while the graphs are captured."""


def estimate_bytes(make: Callable[[], DecodeGraphs], used_bytes: Callable[[], int]) -> int:
    """The memory that the graphs will need, from the first two of them; 0 if there will be none.

    The first one fills the pool, and each has its list of launches besides.
    """
    try:
        used = [used_bytes()]
        graphs = make()
        keys = graphs.keys
        for key in keys[:2]:
            graphs.capture(key)
            used.append(used_bytes())
    except Exception:  # `capture_all` fails in the same way, and tells the reason
        return 0
    first, *others = (max(0, after - before) for before, after in pairwise(used))
    return first + sum(others[:1]) * (len(keys) - 1)


def padded_sizes(most: int) -> list[int]:
    """The numbers of rows that are captured, up to the first that holds `most` (as in vLLM)."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, MOST_ROWS + 1, 16)]
    return sizes[: bisect_left(sizes, most) + 1]


def is_decode(host: HostBatch) -> bool:
    """Whether each row has one token and samples, and nothing else is asked for."""
    num_rows = len(host.rows.starts)
    return 0 < num_rows == len(host.token_ids) == len(host.output_at) == host.num_sampling


def padded(host: HostBatch, size: int) -> HostBatch:
    """The step with padding rows up to `size`: token 0 at position 0, in the first block."""
    rows, num_padding = host.rows, size - len(host.rows.starts)
    nothing = np.zeros(num_padding, np.int64)
    return HostBatch(
        np.concatenate([host.token_ids, nothing]),
        np.concatenate([host.position_ids, nothing]),
        np.concatenate([host.rope_lens, nothing]),
        np.arange(size),
        size,
        Rows(
            np.arange(size + 1),
            np.concatenate([rows.starts, nothing]),
            np.concatenate([rows.table_begins, nothing]),
            rows.blocks,
            rows.block_size,
            num_padding,
        ),
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
