"""The forecast, against a reference that simulates the pipeline turns token by token."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.costs.cost_model import TABLE_TOKENS, CostModel
from engine.policies.temporal.forecast import Rest, best_size, rest_s
from tests.engine.staircases import stairs


class Group(NamedTuple):
    """Similar sequences; live ones have no prompt left."""

    number: int
    prompt: int
    output: int


AMPLE = 10**9
# Steps can hold all rows, and prompts beside them.
SIZES = [256, 512, 1024]
COST = stairs((64, 1.0), (128, 1.1), (256, 1.6), (512, 3.0), (1024, 6.0), (TABLE_TOKENS, 48.0))
LIVE = st.builds(Group, st.integers(1, 40), st.just(0), st.integers(1, 300))
WAITING = st.builds(Group, st.integers(1, 40), st.integers(1, 200), st.integers(1, 300))
GROUPS = st.builds(
    lambda live, waiting: [*live, *waiting],
    st.lists(LIVE, max_size=1),
    st.lists(WAITING, min_size=1, max_size=3),
)
FEW = settings(max_examples=40, deadline=None)


def rest_of(groups: list[Group]) -> Rest:
    """The remaining work, one group per sequence; live ones have no prompt left."""
    single = [group for group in groups for _ in range(group.number)]
    prompts = np.array([float(group.prompt) for group in single])
    outputs = np.array([float(group.output) for group in single])
    return Rest(np.ones(len(single)), prompts, prompts, outputs)


def forecast(
    groups: list[Group],
    num_stages: int,
    *,
    cost: CostModel = COST,
    kv_tokens: int = AMPLE,
    decoding: bool = True,
) -> dict[int, float]:
    """Seconds with steps of each size."""
    rest = rest_of(groups)
    seconds = rest_s(cost, SIZES, rest, num_stages, kv_tokens, decoding=decoding)
    return dict(zip(SIZES, seconds.tolist(), strict=True))


def reference(
    groups: list[Group],
    num_stages: int,
    size: int,
    *,
    cost: CostModel = COST,
    decoding: bool = True,
) -> float:
    """Turns of `num_stages` steps: a token for each live sequence, the others for prompts."""
    prompts = [[g.prompt, g.output] for g in groups for _ in range(g.number) if g.prompt]
    live = [g.output for g in groups for _ in range(g.number) if not g.prompt]
    seconds = (num_stages - 1) * cost.linear_s(size)  # the bubble
    while prompts or live:
        rows, idle = (live, []) if decoding or not prompts else ([], live)
        begun = []
        rows_of_a_step = max(1, round(len(rows) / num_stages))
        seconds += num_stages * cost.linear_s(size if prompts else rows_of_a_step)
        left = num_stages * size - len(rows)
        while prompts and left > 0:
            fed = min(left, prompts[0][0])
            left -= fed
            prompts[0][0] -= fed
            if not prompts[0][0]:
                begun.append(prompts.pop(0)[1])
        live = [output - 1 for output in rows if output > 1] + idle + begun
    return seconds


def rounding_s(num_stages: int, size: int) -> float:
    """Rounding of the reference: it has only whole turns when feeding and decoding end."""
    return 2 * num_stages * COST.linear_s(size)


@FEW
@given(groups=GROUPS, num_stages=st.integers(1, 4), decoding=st.booleans())
def test_the_forecast_is_within_a_seventh_and_two_turns_of_the_reference(
    groups: list[Group], num_stages: int, decoding: bool
) -> None:
    for size, seconds in forecast(groups, num_stages, decoding=decoding).items():
        expected = reference(groups, num_stages, size, decoding=decoding)
        assert abs(seconds - expected) <= expected / 7 + rounding_s(num_stages, size)


@FEW
@given(groups=GROUPS, num_stages=st.integers(1, 4))
def test_no_other_size_would_have_been_much_better(groups: list[Group], num_stages: int) -> None:
    size, pauses = best_size(COST, SIZES, rest_of(groups), num_stages, AMPLE)
    best = min(
        reference(groups, num_stages, other, decoding=decoding)
        for other in SIZES
        for decoding in (True, False)
    )
    chosen = reference(groups, num_stages, size, decoding=not pauses)
    assert chosen <= best * 1.1 + rounding_s(num_stages, size)


# A long step makes tokens cheap, and a step of few rows costs as much as one of 256 tokens.
STEEP = stairs((256, 1.0), (1024, 2.0), (TABLE_TOKENS, 16.0))
PROMPTS = Group(1000, 500, 1)


@pytest.mark.parametrize("num_stages", [1, 4])
def test_prompts_take_their_tokens_in_steps_and_a_bubble(num_stages: int) -> None:
    for size, seconds in forecast([PROMPTS], num_stages, cost=STEEP).items():
        steps = 500_000 / size + num_stages - 1
        assert seconds == pytest.approx(steps * STEEP.linear_s(size), rel=0.02)


def test_prompts_without_decodes_are_fed_in_the_cheapest_steps() -> None:
    assert best_size(STEEP, SIZES, rest_of([PROMPTS]), 1, AMPLE)[0] == 1024
    assert best_size(STEEP, SIZES, rest_of([PROMPTS]), 1, kv_tokens=400_000) == (1024, False)


def test_a_long_answer_leads_to_short_turns_filled_with_prompts() -> None:
    groups = [Group(1, 10, 2000), PROMPTS]
    seconds = {size: reference(groups, 1, size, cost=STEEP) for size in SIZES}
    assert min(seconds, key=lambda size: seconds[size]) == 256
    assert seconds[256] < 0.9 * min(seconds[size] for size in SIZES if size != 256)
    assert best_size(STEEP, SIZES, rest_of(groups), 1, AMPLE) == (256, False)


def test_the_first_size_is_kept_unless_another_one_is_clearly_better() -> None:
    nearly = stairs((512, 2.0), (1024, 3.97), (TABLE_TOKENS, 32.0))
    clearly = stairs((512, 2.0), (1024, 3.5), (TABLE_TOKENS, 32.0))
    for cost, size in ((nearly, 512), (clearly, 1024)):
        assert best_size(cost, [512, 1024], rest_of([PROMPTS]), 1, 400_000) == (size, False)


# Steps of decodes only cost almost nothing; beside prompts each row takes the place of a token.
LATER = stairs((512, 0.1), (1024, 6.0), (TABLE_TOKENS, 48.0))
MIXED = [Group(256, 0, 100), Group(200, 400, 100)]


def test_decoding_pauses_if_steps_of_rows_only_are_much_cheaper() -> None:
    paused = reference(MIXED, 1, 1024, cost=LATER, decoding=False)
    assert paused < 0.9 * reference(MIXED, 1, 1024, cost=LATER)
    assert best_size(LATER, [1024], rest_of(MIXED), 1, AMPLE) == (1024, True)


def test_decoding_does_not_pause_for_prompts_that_wait_for_its_blocks() -> None:
    assert best_size(LATER, [1024], rest_of(MIXED), 1, kv_tokens=20_000) == (1024, False)


def test_a_small_kv_cache_needs_more_turns() -> None:
    # Ten at a time, each 150 tokens long on average: ten times 100 turns of one second.
    # Prompts are fed in only ten of them, which cost more.
    cost, groups = stairs((100, 1.0), (TABLE_TOKENS, 3.0)), [Group(100, 100, 100)]
    assert forecast(groups, 1, cost=cost, kv_tokens=1500)[1024] == pytest.approx(1020, rel=0.1)
    assert forecast(groups, 1, cost=cost)[1024] < 150


def test_the_first_large_steps_leave_a_bubble_on_every_other_stage() -> None:
    # Nothing to feed and one turn to decode, for any size.
    seconds = forecast([Group(1, 0, 1)], 4)
    for size in SIZES:
        assert seconds[size] == pytest.approx(4 * 1.0 + 3 * COST.linear_s(size))


def test_groups_may_represent_similar_sequences() -> None:
    many = Rest(*(np.array([n]) for n in (400.0, 0.0, 0.0, 50.0)))
    seconds = rest_s(COST, SIZES, many, 4, AMPLE).tolist()
    assert seconds == pytest.approx(list(forecast([Group(400, 0, 50)], 4).values()))
