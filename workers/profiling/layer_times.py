"""Layer times: measures the seconds of each layer, and finds the best split of the layers.

This implements `--layer-split auto`. The number of parameters is a poor estimate of a stage's
seconds if the vocabulary is large, or if layers or devices differ. Therefore each stage times its
layers with hooks over a reference mix of steps, all stages exchange their times, and the layers are
split again so that the slowest stage is as fast as possible and none has little room for KV.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch

from workers.model.layer_split import PartitionError, fastest
from workers.model.stage_model import StageModel, bytes_of
from workers.profiling.dummy_run import DummyRun, decode, prefill

# A request of 512 tokens with an answer of 128 tokens, in batches of 32, causes four decode steps
# per prefill.
PROMPT, CONTEXT, ROWS, DECODES = 512, 256, 32, 4
PASSES, WARM_UP_PASSES = 5, 1
# The weights are loaded again only for a split that is faster by more than this fraction.
WORTH = 0.02
# A split may be slower by this fraction for room for twice as many sequences; more than
# `MOST_SEQUENCES` of maximum length are not needed.
ROOM_WORTH, MOST_SEQUENCES = 0.05, 64


@dataclass(frozen=True, slots=True)
class LayerTimes:
    """The times and sizes of the layers of one stage, which begin at layer `first`.

    `extra_s` and `extra_bytes` are of the rest of the stage. Layers of one kind cost the same on
    one device. `limit_bytes` is the limit for weights and KV, `kv_limit_bytes` the limit for KV
    only, if it was set. `kv_bytes` is the KV of a sequence of maximum length, per layer.
    """

    first: int
    seconds: tuple[float, ...]
    kinds: tuple[str, ...]
    weight_bytes: tuple[int, ...]
    kv_bytes: tuple[int, ...]
    extra_s: float
    extra_bytes: int
    limit_bytes: int
    kv_limit_bytes: int | None = None


def reference_mix(max_model_len: int) -> list[tuple[DummyRun, int]]:
    """Return the dummy runs of the mix, with the weight of each."""
    prompt = prefill([min(PROMPT, max_model_len)])
    return [(prompt, 1), (decode(ROWS, min(CONTEXT, max_model_len - 1)), DECODES)]


def time_layers(
    model: StageModel, run: Callable[[DummyRun], float], device: torch.device
) -> tuple[list[float], float]:
    """Measure the seconds of each layer and of the rest of the stage, over the reference mix."""
    layers = model.layer_modules
    began_at, spent = [0.0] * len(layers), [0.0] * len(layers)

    def begin(i: int, *_: Any) -> None:
        wait(device)
        began_at[i] = time.perf_counter()

    def end(i: int, *_: Any) -> None:
        wait(device)
        spent[i] += time.perf_counter() - began_at[i]

    passes = []
    with ExitStack() as hooks:
        for i, layer in enumerate(layers):
            hooks.callback(layer.register_forward_pre_hook(partial(begin, i)).remove)
            hooks.callback(layer.register_forward_hook(partial(end, i)).remove)
        for _ in range(PASSES + WARM_UP_PASSES):
            totals = [0.0] * (len(layers) + 1)
            for dummy_run, times in reference_mix(model.max_model_len):
                spent[:] = [0.0] * len(layers)
                whole = run(dummy_run)
                for i, seconds in enumerate([*spent, whole - sum(spent)]):
                    totals[i] += times * seconds
            passes.append(totals)
    *of_layers, rest = (median(column) for column in zip(*passes[WARM_UP_PASSES:], strict=True))
    return of_layers, max(0.0, rest)


def describe_layers(model: StageModel) -> tuple[tuple[str, ...], tuple[int, ...], int]:
    """Return the kinds and bytes of the layers, and the bytes of the rest of the stage."""
    layers = model.layer_modules
    sizes = tuple(bytes_of(layer) for layer in layers)
    kinds = tuple(
        f"{type(layer).__name__} {size}" for layer, size in zip(layers, sizes, strict=True)
    )
    return kinds, sizes, model.num_bytes - sum(sizes)


def better_split(stages: Sequence[LayerTimes], last_cut: int | None = None) -> list[range] | None:
    """Return the best split by these times; None if it gains too little over the current one.

    The split with the fastest slowest stage is the best, unless another one holds the KV of at
    least twice as many sequences and is nearly as fast: the stage with the least room for KV limits
    all others, because a sequence has KV on every stage. No stage may begin after layer `last_cut`,
    if it is given.
    """
    layer_s = _seconds_everywhere(stages)
    extra_s = [stage.extra_s for stage in stages]
    rooms = _Rooms(stages)

    def fits(stage: int, start: int, end: int, num_sequences: int) -> bool:
        is_cut_possible = last_cut is None or start <= last_cut
        return is_cut_possible and rooms.num_sequences(stage, start, end) >= num_sequences

    def slowest(split: Sequence[range]) -> float:
        times = zip(layer_s, extra_s, split, strict=True)
        return max(sum(seconds[r.start : r.stop]) + extra for seconds, extra, r in times)

    best: list[range] | None = None
    limit_s, num_sequences = float("inf"), 1
    while num_sequences <= MOST_SEQUENCES:
        try:
            found = fastest(layer_s, extra_s, partial(fits, num_sequences=num_sequences))
        except PartitionError:
            break
        if slowest(found) > limit_s:
            break
        if best is None:
            limit_s = slowest(found) * (1 + ROOM_WORTH)
        best, num_sequences = found, 2 * num_sequences
    present = [range(stage.first, stage.first + len(stage.seconds)) for stage in stages]
    if best is None:
        return None
    is_faster = slowest(best) * (1 + WORTH) < slowest(present)
    has_room = rooms.least(best) >= 2 * rooms.least(present)
    return best if is_faster or has_room else None


class _Rooms:
    """How many sequences of maximum length the stages hold, by their layers."""

    def __init__(self, stages: Sequence[LayerTimes]) -> None:
        self._stages = stages
        self._weight_bytes = [size for stage in stages for size in stage.weight_bytes]
        self._kv_bytes = [size for stage in stages for size in stage.kv_bytes]

    def num_sequences(self, stage: int, start: int, end: int) -> int:
        """The sequences that a stage with these layers holds; negative without room for weights."""
        device = self._stages[stage]
        free_bytes = device.limit_bytes - device.extra_bytes - sum(self._weight_bytes[start:end])
        if device.kv_limit_bytes is not None:
            free_bytes = min(free_bytes, device.kv_limit_bytes)
        return free_bytes // max(1, sum(self._kv_bytes[start:end]))

    def least(self, split: Sequence[range]) -> int:
        """The sequences that all stages hold."""
        return min(self.num_sequences(n, part.start, part.stop) for n, part in enumerate(split))


def wait(device: torch.device) -> None:
    """Wait until the device has finished the work of the layers' stream.

    Other streams may have receives of later steps.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _seconds_everywhere(stages: Sequence[LayerTimes]) -> list[list[float]]:
    """The seconds of all layers on all stages [stages][layers], estimated if not measured.

    The estimate is the time on the stage that has the layer, scaled by the speed of the devices.
    """
    kinds = [kind for stage in stages for kind in stage.kinds]
    owners = [stage for stage, times in enumerate(stages) for _ in times.kinds]
    known = [_seconds_of_kinds(stage) for stage in stages]
    return [
        [
            known[stage].get(kind, known[owner][kind] * _slower(known[stage], known[owner]))
            for kind, owner in zip(kinds, owners, strict=True)
        ]
        for stage in range(len(stages))
    ]


def _seconds_of_kinds(stage: LayerTimes) -> dict[str, float]:
    times: dict[str, list[float]] = {}
    for kind, seconds in zip(stage.kinds, stage.seconds, strict=True):
        times.setdefault(kind, []).append(seconds)
    return {kind: median(seconds) for kind, seconds in times.items()}


def _slower(here: dict[str, float], there: dict[str, float]) -> float:
    """The median ratio of layer times here and there, over the kinds that both have measured."""
    ratios = [here[kind] / there[kind] for kind in here if there.get(kind)]
    return median(ratios) if ratios else 1.0
