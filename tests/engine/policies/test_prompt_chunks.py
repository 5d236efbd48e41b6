"""The chunks of long prompts: chosen by their time through the pipeline, and then kept."""

import pytest

from engine.costs.cost_model import CostModel
from engine.policies.prompt_chunks import SMALLEST, PromptChunks, chunks_s, prefill_s

BUDGET = 2048


def proportional(base_s: float = 0.0, kv_s: float = 0.0) -> CostModel:
    """A stage that takes 1 ms per token, and `base_s` for each step."""
    return CostModel([1, 8192], [base_s + 0.001, base_s + 8.192], kv_s_per_token=kv_s)


def test_a_flow_shop_ends_with_the_last_chunk_on_the_last_stage() -> None:
    cost = proportional()
    assert prefill_s(cost, 1, 4096, 2048) == pytest.approx(4.096)
    assert prefill_s(cost, 2, 4096, 2048) == pytest.approx(4.096 + 2.048)
    assert prefill_s(cost, 4, 4096, 1024) == pytest.approx(4.096 + 3 * 1.024)
    assert prefill_s(cost, 2, 5000, 2048) == pytest.approx(5.000 + 2.048)


def test_one_stage_gains_nothing_from_small_chunks() -> None:
    assert PromptChunks(BUDGET, 1, proportional(base_s=0.01)).size(7000) == BUDGET


@pytest.mark.parametrize("num_stages", [2, 4, 8])
def test_without_a_cost_per_step_the_chunks_are_small(num_stages: int) -> None:
    size = PromptChunks(BUDGET, num_stages, proportional()).size(7000)
    assert SMALLEST <= size <= 256


def test_dear_steps_and_dear_context_make_chunks_larger() -> None:
    sizes = [
        PromptChunks(BUDGET, 2, cost).size(7000)
        for cost in (proportional(), proportional(base_s=0.05), proportional(base_s=10.0))
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2] == BUDGET
    reads = PromptChunks(BUDGET, 2, proportional(kv_s=0.0001)).size(7000)
    assert reads > sizes[0]


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@pytest.mark.parametrize("base_s", [0.0, 0.02, 0.3])
def test_the_choice_is_close_to_the_best_of_all_halves(base_s: float, num_stages: int) -> None:
    cost = proportional(base_s)
    size = PromptChunks(BUDGET, num_stages, cost).size(8192)
    halves = [BUDGET >> k for k in range(6)]
    allowed = 1.05 * sum(chunks_s(cost, 8192, BUDGET))
    times = [
        prefill_s(cost, num_stages, 8192, half)
        for half in halves
        if sum(chunks_s(cost, 8192, half)) <= allowed
    ]
    assert sum(chunks_s(cost, 8192, size)) <= allowed
    assert prefill_s(cost, num_stages, 8192, size) <= 1.02 * min(times)


def test_a_prompt_within_the_budget_is_not_cut() -> None:
    chunks = PromptChunks(BUDGET, 4, proportional())
    assert chunks.size(BUDGET) == BUDGET
    assert chunks.size(1) == BUDGET


def test_a_choice_is_kept_when_the_costs_are_corrected() -> None:
    cost = proportional()
    chunks = PromptChunks(BUDGET, 2, cost)
    before = chunks.size(7000)
    cost.become(proportional(base_s=10.0))
    assert chunks.size(7000) == chunks.size(7001) == before
    assert chunks.size(20_000) < BUDGET  # of a length that was not asked for before


def test_a_small_budget_is_never_exceeded_or_zero() -> None:
    for budget in (1, 2, 63, 100, 129):
        assert 1 <= PromptChunks(budget, 2, proportional()).size(1000) <= budget
