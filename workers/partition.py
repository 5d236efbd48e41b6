"""The partition: which layers each stage holds."""

from collections.abc import Sequence
from functools import cache


class PartitionError(Exception):
    """The layers cannot be split so; the text is for the user."""


def split_by_hand(split: Sequence[int], num_layers: int) -> list[range]:
    """Consecutive layer ranges of the given lengths. Raises `PartitionError` on a wrong sum."""
    if sum(split) != num_layers:
        raise PartitionError(
            f"layer_split {','.join(map(str, split))} names {sum(split)} layers, "
            f"the model has {num_layers}"
        )
    starts = [sum(split[:stage]) for stage in range(len(split))]
    return [range(start, start + count) for start, count in zip(starts, split, strict=True)]


def balance(layers: Sequence[int], embedding: int, head: int, num_stages: int) -> list[range]:
    """Consecutive layer ranges whose heaviest stage is as light as can be.

    Weights are in parameters: of each layer, of what the first stage holds besides (embedding) and
    of what the last one does (final norm and head). Parameters stand for both the seconds of a
    decode step, which reads them all, and the memory that is not left for KV. Among equally good
    splits the one with the smallest sum of squares is taken.
    Raises `PartitionError` when there are fewer layers than stages.
    """
    num_layers = len(layers)
    if num_layers < num_stages:
        raise PartitionError(f"{num_layers} layers cannot be split into {num_stages} stages")
    prefix = [0]
    for weight in layers:
        prefix.append(prefix[-1] + weight)

    def weight_of(stage: int, start: int, end: int) -> int:
        extra = embedding * (stage == 0) + head * (stage == num_stages - 1)
        return prefix[end] - prefix[start] + extra

    @cache
    def best(stage: int, start: int) -> tuple[int, int, tuple[int, ...]]:
        """(heaviest, sum of squares, ends) from `stage` on, for the layers from `start` on."""
        if stage == num_stages - 1:
            weight = weight_of(stage, start, num_layers)
            return weight, weight * weight, (num_layers,)
        choices = []
        for end in range(start + 1, num_layers - (num_stages - 1 - stage) + 1):
            weight = weight_of(stage, start, end)
            heaviest, squares, ends = best(stage + 1, end)
            choices.append((max(weight, heaviest), weight * weight + squares, (end, *ends)))
        return min(choices)

    ends = best(0, 0)[2]
    return [range(start, end) for start, end in zip((0, *ends), ends, strict=False)]
