"""The profile's plan: what is measured, and within which limits."""

import pytest

from workers.profiling.dummy_run import decode
from workers.profiling.plan import Limits, copies, full_dummy_runs, most_cache_tokens

WIDE = Limits(2048, 512, 8192, 1_000_000, 16)


def test_prefills_decodes_and_both_are_measured() -> None:
    dummy_runs = full_dummy_runs(WIDE, has_stairs=False)
    sizes = {t.num_tokens for t in dummy_runs if t.kind == "prefill" and not t.kv_tokens}
    assert {1 << power for power in range(12)} <= sizes
    rows = {t.num_rows for t in dummy_runs if t.kind == "decode"}
    assert rows == {1 << power for power in range(10)}
    assert any(t.kind == "prefill" and t.kv_tokens for t in dummy_runs)
    assert any(t.kind == "mixed" for t in dummy_runs)
    assert len(dummy_runs) == len(set(dummy_runs))


def test_both_sides_of_a_gpu_s_stairs_are_measured() -> None:
    sizes = {t.num_tokens for t in full_dummy_runs(WIDE, has_stairs=True) if t.kind == "prefill"}
    assert {128, 129, 1920, 1921} <= sizes


@pytest.mark.parametrize(
    "limits",
    [
        Limits(100, 512, 8192, 1_000_000, 16),
        Limits(2048, 3, 8192, 1_000_000, 16),
        Limits(2048, 512, 50, 1_000_000, 16),
        Limits(2048, 512, 8192, 640, 16),
    ],
)
def test_nothing_is_beyond_the_limits(limits: Limits) -> None:
    dummy_runs = full_dummy_runs(limits, has_stairs=True)
    assert dummy_runs
    assert all(limits.allow(dummy_run) for dummy_run in dummy_runs)


def test_copies_in_flight_together_lie_on_different_blocks() -> None:
    first, second, third = copies(decode(2, 20), 3, 2, 16)
    assert (first.first_block, second.first_block, third.first_block) == (0, 4, 0)
    assert most_cache_tokens([decode(2, 20), decode(1, 3)], 2, 16) == 2 * 4 * 16
