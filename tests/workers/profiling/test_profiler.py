"""The profiler: what it measures, within its budget, on a fake stage."""

import itertools
import time

import pytest
import torch

from tests.workers.world import all_slots
from wire.messages import StageCosts
from workers.device.upload import upload_to
from workers.model import batch
from workers.profiling import profiler
from workers.profiling.dummy_run import DummyRun, decode, make_step, mixed, prefill

CPU = torch.device("cpu")


class FakeStage:
    """Remembers the dummy runs; each takes `seconds`."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.dummy_runs: list[DummyRun] = []
        self._seconds = seconds

    def run(self, dummy_run: DummyRun) -> float:
        self.dummy_runs.append(dummy_run)
        time.sleep(self._seconds)
        return self._seconds or 1e-3 * (1 + dummy_run.num_tokens / 100)


def dummy_runs(**limits: int) -> list[DummyRun]:
    """Of a CPU stage with steps of up to 300 tokens, unless set otherwise."""
    given = {
        "max_tokens": 300,
        "max_model_len": 2048,
        "max_rows": 512,
        "cache_tokens": 100_000,
        **limits,
    }
    return profiler.quick_dummy_runs(**given, has_stairs=False)


def test_sizes_up_to_the_largest_step_are_measured() -> None:
    costs = profiler.profile(FakeStage().run, dummy_runs(), 10.0).costs
    assert {1, 2, 4, 8, 16, 32, 64, 128, 256, 300} <= set(costs.num_tokens)
    assert list(costs.seconds) == sorted(costs.seconds)
    assert min(costs.seconds) > 0


def test_each_term_has_steps_that_separate_it_from_the_others() -> None:
    chosen = dummy_runs()
    assert len({dummy_run.num_rows for dummy_run in chosen if dummy_run.num_tokens == 256}) > 1
    assert len({dummy_run.kv_tokens for dummy_run in chosen if dummy_run.num_rows == 32}) > 1
    assert {dummy_run.kind for dummy_run in chosen} == {"prefill", "decode", "mixed"}
    assert any(dummy_run.kind == "prefill" and dummy_run.kv_tokens for dummy_run in chosen)


def test_without_a_budget_nothing_runs() -> None:
    stage = FakeStage()
    assert profiler.profile(stage.run, dummy_runs(), 0.0).costs == StageCosts()
    assert stage.dummy_runs == []


def test_beyond_the_budget_the_less_important_steps_are_left_out() -> None:
    stage = FakeStage(seconds=0.01)
    costs = profiler.profile(stage.run, dummy_runs(), 0.1).costs
    assert costs.num_tokens
    ran = list(dict.fromkeys(stage.dummy_runs))
    assert ran == [dummy_run for dummy_run in dummy_runs() if dummy_run in ran]
    assert ran[0] == dummy_runs()[0]
    assert len(ran) < len(dummy_runs())


def test_even_a_budget_that_is_too_small_measures_one_step() -> None:
    costs = profiler.profile(FakeStage(seconds=0.02).run, dummy_runs(), 1e-6).costs
    assert costs.num_tokens == (1,)


def test_a_step_is_never_repeated_before_all_have_been_run() -> None:
    stage = FakeStage()
    chosen = dummy_runs()
    profiler.measure(stage.run, chosen, 10.0)
    of_first_pass = 2 * len(chosen)  # one to warm up
    assert set(stage.dummy_runs[:of_first_pass]) == set(chosen)
    assert stage.dummy_runs[of_first_pass : of_first_pass + len(chosen)] == chosen


class Disturbed(FakeStage):
    """A stage that takes a second for the steps with these numbers."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self._disturbed = range(first, last)

    def run(self, dummy_run: DummyRun) -> float:
        seconds = super().run(dummy_run)
        return 1.0 if len(self.dummy_runs) in self._disturbed else seconds


def test_a_step_that_was_disturbed_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler, "MAX_PASSES", 1)
    undisturbed = profiler.profile(FakeStage().run, dummy_runs(), 100.0)
    disturbed = profiler.profile(Disturbed(20, 24).run, dummy_runs(), 100.0)
    assert undisturbed.is_plausible
    assert disturbed.is_plausible
    assert disturbed.costs.seconds == pytest.approx(undisturbed.costs.seconds, rel=0.05)


def test_a_measurement_under_a_changing_load_is_not_plausible() -> None:
    loads = dict(zip(dummy_runs(), itertools.cycle([1e-3, 0.05, 2e-3, 0.2, 0.01]), strict=False))
    noisy = profiler.profile(loads.__getitem__, dummy_runs(), 10.0)
    assert noisy.costs.num_tokens
    assert not noisy.is_plausible


def test_cheap_steps_are_measured_often_before_an_expensive_one_takes_the_budget() -> None:
    times: dict[DummyRun, int] = {}

    def run(dummy_run: DummyRun) -> float:
        times[dummy_run] = times.get(dummy_run, 0) + 1
        time.sleep(0.001 if dummy_run.num_tokens < 256 else 0.4)
        return 0.001 if dummy_run.num_tokens < 256 else 0.4

    profiler.measure(run, dummy_runs(), 0.5)
    assert times[dummy_runs()[0]] > profiler.NUM_EARLY_PASSES


@pytest.mark.parametrize(
    "limits",
    [
        {"cache_tokens": 64},
        {"max_model_len": 100},
        {"max_rows": 3},
        {"max_tokens": 1},
        {"max_tokens": 8192, "cache_tokens": 9000},
    ],
)
def test_no_dummy_run_is_beyond_the_limits_of_the_stage(limits: dict[str, int]) -> None:
    chosen = dummy_runs(**limits)
    assert chosen
    for dummy_run in chosen:
        assert dummy_run.num_tokens <= limits.get("max_tokens", 300)
        assert dummy_run.longest <= limits.get("max_model_len", 2048)
        assert dummy_run.num_rows <= limits.get("max_rows", 512)
        assert dummy_run.kv_tokens + dummy_run.num_tokens <= limits.get("cache_tokens", 100_000)


def test_a_stage_that_fails_is_not_measured_and_continues() -> None:
    def run(dummy_run: DummyRun) -> float:
        raise RuntimeError(f"no memory for {dummy_run.num_rows} rows")

    assert profiler.profile(run, dummy_runs(), 1.0).costs == StageCosts()


@pytest.mark.parametrize("has_stairs", [True, False])
def test_both_sides_of_a_stair_are_measured_where_there_are_stairs(*, has_stairs: bool) -> None:
    sizes = profiler.sizes(1000, has_stairs=has_stairs)
    assert ({128, 129, 256, 257, 384, 385} <= set(sizes)) == has_stairs
    assert sizes[-1] == 1000
    assert sizes == sorted(set(sizes))


def test_the_steps_can_be_built_as_any_other() -> None:
    built = batch.build(make_step(prefill([256, 256, 88]), 16, 100), 16, upload_to(CPU))
    assert built.num_tokens == 600
    assert built.rows.begins.tolist() == [0, 256, 512, 600]
    chunk = batch.build(make_step(mixed(2, 20, 30), 16, 100), 16, upload_to(CPU))
    assert [len(slots) for slots in all_slots(chunk.rows)] == [21, 21, 30]


def test_rows_share_blocks_where_the_cache_is_small() -> None:
    built = batch.build(make_step(decode(3, 40), 16, 5), 16, upload_to(CPU))
    assert [len(slots) for slots in all_slots(built.rows)] == [41, 41, 41]
    assert max(max(slots) for slots in all_slots(built.rows)) < 5 * 16
