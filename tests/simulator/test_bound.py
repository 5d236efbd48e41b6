"""The bound: below the makespan of every policy, and equal to it where a case has no slack."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from configs.config import EngineConfig
from engine.policies.registry import POLICIES
from simulator.arrival import Arrival
from simulator.bound import Bound, bound_of
from simulator.pipeline import Node
from simulator.simulation import simulate
from wire.messages import StageCosts

BLOCK_SIZE = 4
AMPLE = 1000
# Steps of any number of tokens take a second: a staircase with a single stair.
FLAT = StageCosts((1,), (1.0,))
# A token costs the same in every step, beyond the points of the profile as well.
LINEAR = StageCosts((1, 1000), (0.001, 1.0))
POLICY_SETTINGS: list[dict[str, Any]] = [
    *({"policy": policy} for policy in POLICIES),
    {"policy": "hybrid", "hybrid": "vllm"},
]


def makespan_s(node: Node, arrivals: list[Arrival], **settings: Any) -> float:
    config = EngineConfig.of(
        **{"pipeline_parallel_size": len(node.costs), "block_size": BLOCK_SIZE, **settings}
    )
    return simulate(config, node, arrivals).makespan_s


def bound(node: Node, arrivals: list[Arrival], cached: list[int] | None = None) -> Bound:
    return bound_of(node, BLOCK_SIZE, arrivals, cached)


def node_of(*costs: StageCosts, num_blocks: int = AMPLE, hop_s: float = 0.0) -> Node:
    return Node(costs, num_blocks, max_model_len=4096, hop_s=hop_s)


# Large and small terms, so that each of them decides in some cases.
SECONDS = st.sampled_from((0.0, 1e-5, 1e-4, 1e-3, 0.01))


@st.composite
def stage_costs(draw: st.DrawFn) -> StageCosts:
    """Any staircase, even one that falls: measurements are noisy."""
    points = sorted(draw(st.sets(st.integers(1, 300), min_size=1, max_size=5)))
    seconds = tuple(draw(st.floats(0.001, 1.0)) for _ in points)
    return StageCosts(tuple(points), seconds, draw(SECONDS), draw(SECONDS), draw(SECONDS))


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    costs = draw(st.lists(stage_costs(), min_size=1, max_size=4))
    if draw(st.booleans()):
        costs = costs[:1] * len(costs)
    # Sequences have up to 100 tokens in 25 blocks.
    num_blocks = draw(st.sampled_from((26, 30, 40, 80, AMPLE)))
    num_slices = draw(st.sampled_from((1, 1, 2, 3)))
    overhead_s, hop_s = draw(SECONDS), draw(SECONDS)
    return Node(tuple(costs), num_blocks, 4096, overhead_s, hop_s, num_slices=num_slices)


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.sampled_from((0.0, 0.0, 0.5, 3.0)),
        st.integers(1, 60),
        st.integers(1, 40),
        st.integers(0, 60),
        offline=st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


@given(node=nodes(), arrivals=ARRIVALS, max_tokens=st.sampled_from((16, 64, 2048)))
@example(
    # Preemptions: feeding tokens again is cheaper than reading their KV.
    node=Node((StageCosts((1, 200), (0.01, 0.011), 0.01),) * 2, 30, 4096, 0.0, 0.0),
    arrivals=[Arrival(0.0, 40, 40, 1)] * 6,
    max_tokens=2048,
)
@settings(max_examples=40, deadline=None)
def test_no_policy_is_faster_than_the_bound(
    node: Node, arrivals: list[Arrival], max_tokens: int
) -> None:
    shortest = bound(node, arrivals).makespan_s
    assert shortest > 0
    for choice in POLICY_SETTINGS:
        took_s = makespan_s(node, arrivals, **choice, max_num_batched_tokens=max_tokens)
        assert shortest <= took_s * (1 + 1e-9), choice


@pytest.mark.parametrize("num_stages", [1, 2, 5])
def test_one_request_takes_exactly_the_bound(num_stages: int) -> None:
    node = node_of(*[FLAT] * num_stages, hop_s=0.25)
    arrivals = [Arrival(2.0, 30, 7)]
    shortest = bound(node, arrivals)
    assert shortest.makespan_s == makespan_s(node, arrivals) == 2.0 + 7 * num_stages * 1.25
    assert shortest.limit == "the slowest request"


def test_one_request_reads_its_own_kv() -> None:
    costs = StageCosts((1, 2, 100), (0.5, 1.0, 50.0), kv_s_per_token=0.125, row_s=0.25)
    arrivals = [Arrival(0.0, 1, 4)]
    expected_s = 4 * (0.5 + 0.25) + (1 + 2 + 3) * 0.125
    assert makespan_s(node_of(costs), arrivals) == expected_s
    assert bound(node_of(costs), arrivals).makespan_s == pytest.approx(expected_s)


def test_on_one_stage_with_ample_kv_tokens_of_equal_cost_take_exactly_the_bound() -> None:
    arrivals = [Arrival(0.0, 10 + i, 5 + i % 7) for i in range(20)]
    node = node_of(LINEAR)
    num_fed = sum(a.num_prompt_tokens + a.output_len - 1 for a in arrivals)
    shortest = bound(node, arrivals)
    assert shortest.makespan_s == pytest.approx(num_fed / 1000)
    assert makespan_s(node, arrivals) == pytest.approx(shortest.makespan_s)
    assert shortest.limit == "the tokens"


def test_reads_rows_and_pairs_are_counted() -> None:
    costs = StageCosts((1, 1000), (0.001, 1.0), 1e-5, 1e-3, 1e-6)
    arrivals = [Arrival(0.0, 10, 5)] * 20
    # td-pipe feeds all prompts in one step; more steps with prompts would cost more.
    took_s = makespan_s(node_of(costs), arrivals, policy="td-pipe")
    # A pair of a token with itself is left out: it is one of the token's costs.
    assert bound(node_of(costs), arrivals).makespan_s == pytest.approx(took_s, rel=1e-3)


def test_prompts_that_fill_the_cheapest_step_keep_all_stages_busy() -> None:
    costs = StageCosts((1, 64, 65), (1.0, 1.0, 3.0))
    node = node_of(costs, costs, costs)
    arrivals = [Arrival(0.0, 64, 1)] * 50
    took_s = makespan_s(node, arrivals, max_num_batched_tokens=64, policy="hybrid", hybrid="vllm")
    assert bound(node, arrivals).makespan_s == pytest.approx(took_s)
    assert took_s == 50 + 2


def test_the_kv_cache_limits_the_rows_of_a_step() -> None:
    """A step costs a second whatever its rows, but the cache holds few of them.

    One stage: the sequences have 64 tokens on average, and 1,024 fit, so 16 rows per step.
    """
    arrivals = [Arrival(0.0, 32, 64)] * 160
    ample = bound(node_of(FLAT, num_blocks=5000), arrivals)
    tight = bound(node_of(FLAT, num_blocks=256), arrivals)
    turns = 160 * 63 / 16
    assert ample.kv_s < 100
    assert tight.limit == "the KV cache"
    assert turns * 0.9 < tight.makespan_s < makespan_s(node_of(FLAT, num_blocks=256), arrivals)


def test_on_more_stages_the_same_cache_holds_fewer_rows_per_step() -> None:
    arrivals = [Arrival(0.0, 32, 64)] * 160
    one, four = (
        bound(node_of(*[FLAT] * stages, num_blocks=256), arrivals).kv_s for stages in (1, 4)
    )
    assert four == pytest.approx(4 * one, rel=0.02)


@given(node=nodes(), arrivals=ARRIVALS)
@settings(max_examples=10, deadline=None)
def test_twice_the_costs_take_twice_the_time(node: Node, arrivals: list[Arrival]) -> None:
    at_once = [Arrival(0.0, a.num_prompt_tokens, a.output_len) for a in arrivals]
    doubled = Node(
        tuple(
            StageCosts(
                costs.num_tokens,
                tuple(2 * seconds for seconds in costs.seconds),
                2 * costs.kv_s_per_token,
                2 * costs.row_s,
                2 * costs.pair_s,
            )
            for costs in node.costs
        ),
        node.num_blocks,
        node.max_model_len,
        2 * node.overhead_s,
        2 * node.hop_s,
        num_slices=node.num_slices,
    )
    once, twice = bound(node, at_once), bound(doubled, at_once)
    assert twice.makespan_s == pytest.approx(2 * once.makespan_s)


def test_more_work_more_stages_of_the_same_cost_and_less_kv_never_shorten_it() -> None:
    costs = StageCosts((1, 64, 128, 256), (0.9, 1.0, 1.4, 2.5), 1e-4)
    few = [Arrival(0.0, 40, 60)] * 50
    base = bound(node_of(costs, costs, num_blocks=200), few).makespan_s
    assert bound(node_of(costs, costs, num_blocks=200), few * 2).makespan_s > 1.8 * base
    assert bound(node_of(costs, costs, num_blocks=100), few).makespan_s >= base
    assert bound(node_of(costs, costs, costs, num_blocks=200), few).makespan_s > base
    assert bound(node_of(costs, costs), few).makespan_s <= base


def test_late_arrivals_end_late() -> None:
    node = node_of(LINEAR)
    late = [Arrival(100.0, 10, 5)] * 20
    at_once = [Arrival(0.0, 10, 5)] * 20
    alone = bound(node, at_once).makespan_s
    assert bound(node, late).makespan_s == pytest.approx(100 + alone)
    assert bound(node, [*at_once, *late]).makespan_s == pytest.approx(100 + alone)


def test_cached_tokens_need_not_be_fed_but_are_read() -> None:
    costs = StageCosts((1, 1000), (0.001, 1.0), kv_s_per_token=1e-5)
    arrivals = [Arrival(0.0, 100, 5)] * 20
    fed = bound(node_of(costs), arrivals).makespan_s
    cached = bound(node_of(costs), arrivals, [96] * 20).makespan_s
    assert fed - cached == pytest.approx(20 * 96 * (0.001 - 1e-5), rel=1e-3)
