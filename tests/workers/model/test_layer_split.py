"""The layer split: as light as possible at its heaviest, against every possible split."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.model.layer_split import PartitionError, balance, fastest, split_by_hand

weights = st.integers(0, 50)


def every_split(num_layers: int, num_stages: int) -> list[list[range]]:
    """All ways to give each stage at least one layer."""
    cuts = combinations(range(1, num_layers), num_stages - 1)
    bounds = [(0, *cut, num_layers) for cut in cuts]
    return [[range(a, b) for a, b in pairwise(ends)] for ends in bounds]


def cost(split: list[range], layers: list[int], embedding: int, head: int) -> tuple[int, int]:
    """(heaviest stage, sum of squares)."""
    loads = [sum(layers[i] for i in stage) for stage in split]
    loads[0] += embedding
    loads[-1] += head
    return max(loads), sum(load * load for load in loads)


@given(layers=st.lists(weights, min_size=1, max_size=8), embedding=weights, head=weights)
@pytest.mark.parametrize("num_stages", [1, 2, 3, 4])
def test_no_split_is_lighter_than_the_balanced_one(
    num_stages: int, layers: list[int], embedding: int, head: int
) -> None:
    splits = every_split(len(layers), num_stages)
    if not splits:
        with pytest.raises(PartitionError):
            balance(layers, embedding, head, num_stages)
        return
    chosen = balance(layers, embedding, head, num_stages)
    assert chosen in splits
    assert cost(chosen, layers, embedding, head) == min(
        cost(split, layers, embedding, head) for split in splits
    )


def test_equal_layers_are_shared_equally() -> None:
    assert balance([10] * 6, 0, 0, 3) == [range(2), range(2, 4), range(4, 6)]


def test_a_heavy_embedding_and_head_cost_the_outer_stages_layers() -> None:
    assert balance([10] * 8, 20, 20, 3) == [range(2), range(2, 6), range(6, 8)]


def test_a_model_of_eighty_layers_is_split_into_sixteen() -> None:
    split = balance([855] * 80, 1050, 1050, 16)
    assert [i for stage in split for i in stage] == list(range(80))
    assert max(len(stage) for stage in split) == 6


def test_fewer_layers_than_stages_are_refused() -> None:
    with pytest.raises(PartitionError, match="3 layers cannot be split into 4 stages"):
        balance([1, 1, 1], 0, 0, 4)


def test_a_split_by_hand_is_taken_as_it_is() -> None:
    assert split_by_hand((1, 4, 2), 7) == [range(1), range(1, 5), range(5, 7)]
    assert split_by_hand((7,), 7) == [range(7)]


@pytest.mark.parametrize("split", [(1, 4), (4, 4), (7, 1)])
def test_a_split_by_hand_that_does_not_add_up_is_refused(split: tuple[int, ...]) -> None:
    with pytest.raises(PartitionError, match=f"names {sum(split)} layers, the model has 7"):
        split_by_hand(split, 7)


@st.composite
def pipelines(draw: st.DrawFn) -> tuple[list[list[int]], list[int], list[int], list[int]]:
    """Seconds of each layer on each stage, of the rest of the stages, layers' bytes, and memory."""
    num_stages, num_layers = draw(st.integers(1, 4)), draw(st.integers(4, 8))
    row = st.lists(weights, min_size=num_layers, max_size=num_layers)
    layer_s = draw(st.lists(row, min_size=num_stages, max_size=num_stages))
    extra_s = draw(st.lists(weights, min_size=num_stages, max_size=num_stages))
    memory = draw(st.lists(st.integers(20, 400), min_size=num_stages, max_size=num_stages))
    return layer_s, extra_s, draw(row), memory


@given(pipelines())
def test_no_split_that_fits_is_faster(
    pipeline: tuple[list[list[int]], list[int], list[int], list[int]],
) -> None:
    layer_s, extra_s, sizes, memory = pipeline

    def fits(stage: int, start: int, end: int) -> bool:
        return sum(sizes[start:end]) <= memory[stage]

    def cost_of(split: Sequence[range]) -> tuple[int, int]:
        loads = [sum(layer_s[s][i] for i in r) + extra_s[s] for s, r in enumerate(split)]
        return max(loads), sum(load * load for load in loads)

    splits = [
        split
        for split in every_split(len(sizes), len(memory))
        if all(fits(s, r.start, r.stop) for s, r in enumerate(split))
    ]
    if not splits:
        with pytest.raises(PartitionError, match="fits the stages' memory"):
            fastest(layer_s, extra_s, fits)
        return
    chosen = fastest(layer_s, extra_s, fits)
    assert chosen in splits
    assert cost_of(chosen) == min(map(cost_of, splits))


def test_a_slower_device_gets_fewer_layers() -> None:
    split = fastest([[1.0] * 9, [2.0] * 9], [0.0, 0.0], lambda *_: True)
    assert split == [range(6), range(6, 9)]


def test_a_device_with_less_memory_gets_fewer_layers() -> None:
    split = fastest([[1.0] * 8] * 2, [0.0, 0.0], lambda stage, a, b: stage == 1 or b - a <= 2)
    assert split == [range(2), range(2, 8)]


def test_shared_keys_and_values_limit_the_number_of_stages() -> None:
    assert balance([1] * 8, 0, 0, 3, 2) == [range(1), range(1, 2), range(2, 8)]
    with pytest.raises(PartitionError, match=r"at most 3 stages .* none may begin after layer 2"):
        balance([1] * 8, 0, 0, 4, 2)
