"""The layer split: which layers each stage holds."""

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate
from math import inf

# The cost of a stage with these layers: (stage, first layer, layer after the last).
Weight = Callable[[int, int, int], float]
Fits = Callable[[int, int, int], bool]


class PartitionError(Exception):
    """The layers cannot be split in this way; the message is for the user."""


def split_by_hand(
    split: Sequence[int], num_layers: int, last_cut: int | None = None
) -> list[range]:
    """Split the layers into ranges of these lengths.

    Raises `PartitionError` on a wrong sum, or if a stage begins after layer `last_cut`.
    """
    if sum(split) != num_layers:
        raise PartitionError(
            f"layer_split {','.join(map(str, split))} names {sum(split)} layers, "
            f"the model has {num_layers}"
        )
    starts = [sum(split[:stage]) for stage in range(len(split))]
    if last_cut is not None and starts[-1] > last_cut:
        raise PartitionError(
            f"layer_split {','.join(map(str, split))}: no stage may begin after layer {last_cut}, "
            "because the later layers share its keys and values"
        )
    return [range(start, start + count) for start, count in zip(starts, split, strict=True)]


def balance(
    layers: Sequence[int],
    embedding: int,
    head: int,
    num_stages: int,
    last_cut: int | None = None,
) -> list[range]:
    """Split the layers into consecutive ranges that make the heaviest stage as light as possible.

    Weights are numbers of parameters: of each layer, of the embedding on the first stage, and of
    the final norm and head on the last stage. Parameters represent both the seconds of a decode
    step, which reads all of them, and the memory that is not left for KV. Among equally good
    splits, the split with the smallest sum of squares is chosen. No stage begins after layer
    `last_cut`. Raises `PartitionError` if there are more stages than such layers.
    """
    if last_cut is not None and last_cut + 1 < min(num_stages, len(layers)):
        raise PartitionError(
            f"at most {last_cut + 1} stages (pipeline_parallel_size x virtual_pipeline_size): none "
            f"may begin after layer {last_cut}, because the later layers share its keys and values"
        )
    prefix = _sums(layers)
    last_start = len(layers) if last_cut is None else last_cut

    def weight_of(stage: int, start: int, end: int) -> float:
        extra = embedding * (stage == 0) + head * (stage == num_stages - 1)
        return prefix[end] - prefix[start] + extra

    def fits(_: int, start: int, __: int) -> bool:
        return start <= last_start

    return _lightest(weight_of, fits, len(layers), num_stages)


def fastest(
    layer_s: Sequence[Sequence[float]], extra_s: Sequence[float], fits: Fits
) -> list[range]:
    """Split the layers into consecutive ranges that make the slowest stage as fast as possible.

    `layer_s` has the seconds of each layer on each stage [stages][layers], because devices may
    differ; `extra_s` has the seconds of the rest of each stage. `fits(stage, start, end)` returns
    whether these layers fit into the memory of the stage. Among equally good splits, the split
    with the smallest sum of squares is chosen. Raises `PartitionError` if no split fits, or if
    there are fewer layers than stages.
    """
    prefixes = [_sums(seconds) for seconds in layer_s]

    def weight_of(stage: int, start: int, end: int) -> float:
        return prefixes[stage][end] - prefixes[stage][start] + extra_s[stage]

    return _lightest(weight_of, fits, len(layer_s[0]), len(layer_s))


def _lightest(weight_of: Weight, fits: Fits, num_layers: int, num_stages: int) -> list[range]:
    """Minimise the heaviest weight first; then, within this limit, the sum of squares.

    This takes two passes, because the best split of the remaining layers is not always part of the
    best split of all layers.
    """
    if num_layers < num_stages:
        raise PartitionError(f"{num_layers} layers cannot be split into {num_stages} stages")
    limit, _ = _least(weight_of, fits, max, num_layers, num_stages)

    def fits_too(stage: int, start: int, end: int) -> bool:
        return weight_of(stage, start, end) <= limit and fits(stage, start, end)

    def add_square(weight: float, rest: float) -> float:
        return weight * weight + rest

    _, ends = _least(weight_of, fits_too, add_square, num_layers, num_stages)
    if not ends:
        raise PartitionError("no split of the layers fits the stages' memory")
    return [range(start, end) for start, end in zip((0, *ends), ends, strict=False)]


def _least(
    weight_of: Weight,
    fits: Fits,
    add: Callable[[float, float], float],
    num_layers: int,
    num_stages: int,
) -> tuple[float, tuple[int, ...]]:
    """Return (cost, end of each stage) of the cheapest split; (inf, ()) if no split fits."""

    @cache
    def least(stage: int, start: int) -> tuple[float, tuple[int, ...]]:
        if stage == num_stages:
            return 0, ()
        is_last = stage == num_stages - 1
        last_end = num_layers - (num_stages - 1 - stage)
        best: tuple[float, tuple[int, ...]] = (inf, ())
        for end in range(last_end if is_last else start + 1, last_end + 1):
            if not fits(stage, start, end):
                continue
            rest, ends = least(stage + 1, end)
            best = min(best, (add(weight_of(stage, start, end), rest), (end, *ends)))
        return best if best[0] < inf else (inf, ())

    return least(0, 0)


def _sums(numbers: Iterable[float]) -> list[float]:
    """The sum of the first n numbers, for each n."""
    return [0, *accumulate(numbers)]
