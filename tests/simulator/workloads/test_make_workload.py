"""Workloads: reproducible by seed, with the given lengths and arrival times."""

import math
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from demo.tasks import held_out
from simulator.workloads import make_workload as module
from simulator.workloads.make_workload import arrival_times, make_workload, with_arrivals
from simulator.workloads.request import Request, WorkloadError

MAKERS = ["sharegpt:20", "demo:20", "fixed:20:5:6"]


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_seed_makes_the_same_requests(name: str) -> None:
    assert make_workload(name, seed=3) == make_workload(name, seed=3)
    assert make_workload(name, seed=3) != make_workload(name, seed=4)


@pytest.mark.parametrize("name", MAKERS)
def test_a_workload_has_the_number_of_requests_in_its_name(name: str) -> None:
    assert len(make_workload(name)) == 20


def test_the_rate_changes_arrival_times_but_not_prompts() -> None:
    requests = make_workload("sharegpt:10")
    slow = with_arrivals(requests, 1.0, 1.0, seed=0)
    fast = with_arrivals(requests, 9.0, 1.0, seed=0)
    assert [r.prompt for r in slow] == [r.prompt for r in fast] == [r.prompt for r in requests]
    assert [r.arrival_s for r in slow] != [r.arrival_s for r in fast]


def test_a_fixed_workload_has_the_lengths_in_its_name_and_forces_them() -> None:
    for request in make_workload("fixed:7:5:6"):
        assert len(request.prompt) == 5
        assert (request.max_tokens, request.ignore_eos) == (6, True)


def test_random_prompts_are_within_the_vocabulary_and_without_special_tokens() -> None:
    ids = {i for r in make_workload("fixed:50:40:1", vocab_size=20) for i in map(int, r.prompt)}
    assert ids == set(range(3, 20))


def test_a_scaled_workload_is_shorter_in_prompts_and_outputs() -> None:
    whole, quarter = make_workload("sharegpt:200"), make_workload("sharegpt:200", scale=0.25)
    assert sum(len(r.prompt) for r in quarter) < 0.3 * sum(len(r.prompt) for r in whole)
    assert sum(r.max_tokens for r in quarter) < 0.3 * sum(r.max_tokens for r in whole)


def test_demo_requests_are_held_out_tasks_with_enough_tokens_for_the_answer() -> None:
    tasks = held_out(20, 2)
    for request, task in zip(make_workload("demo:20", seed=2), tasks, strict=True):
        assert (request.prompt, request.answer) == (task.prompt, task.answer)
        assert request.max_tokens > len(task.answer.encode())
        assert not request.ignore_eos


@pytest.mark.parametrize(
    "name",
    [
        "",
        "other:5",
        "sharegpt",
        "sharegpt:",
        "sharegpt:0",
        "sharegpt:-1",
        "sharegpt:x",
        "sharegpt:1:2",
        "fixed:1:2",
        "fixed:1:0:3",
        "sharegpt:10000000",
        "fixed:1000000:1000000:1",
        "fixed:1:1:1000000000",
        "demo:1.5",
        "demo:99999999",
        "jsonl:",
        "jsonl:/no",
    ],
)
def test_an_invalid_name_is_refused_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "held_out", _few_tasks)
    with pytest.raises(WorkloadError) as refusal:
        make_workload(name)
    assert "\n" not in str(refusal.value)


def _few_tasks(count: int, seed: int) -> list[object]:
    """A substitute for `held_out`: making all held-out tasks takes long."""
    raise ValueError(f"there are fewer than {count} held-out prompts (seed {seed})")


def test_a_vocabulary_without_plain_tokens_is_refused() -> None:
    with pytest.raises(WorkloadError, match="--vocab-size"):
        make_workload("fixed:1:1:1", vocab_size=3)


def test_a_rate_is_refused_if_the_requests_have_arrival_times() -> None:
    with pytest.raises(WorkloadError, match="--request-rate"):
        with_arrivals([Request("a", 1, arrival_s=0.5)], 2.0, 1.0, seed=0)


def test_a_written_workload_is_read_back_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.jsonl"
    arguments = ["--workload", "sharegpt:8", "--request-rate", "2", "--seed", "5"]
    assert module.main(arguments) == 0
    file.write_text(capsys.readouterr().out)
    made = with_arrivals(make_workload("sharegpt:8", seed=5), 2.0, 1.0, seed=5)
    assert make_workload(f"jsonl:{file}") == made


def test_the_command_prints_a_summary_of_lengths_to_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert module.main(["--workload", "fixed:3:5:6"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "input tokens: mean 5, p50 5, p90 5, p99 5, max 5",
        "max_tokens: mean 6, p50 6, p90 6, p99 6, max 6",
    ]


def test_the_command_reports_an_error_in_one_line_with_exit_code_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert module.main(["--workload", "other:5"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: unknown workload 'other:5'")
    assert captured.err.count("\n") == 1


def gaps(burstiness: float) -> list[float]:
    times = arrival_times(20_000, 8.0, burstiness, seed=1)
    return [later - earlier for earlier, later in pairwise(times)]


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_mean_gap_is_that_of_the_rate_for_any_burstiness(burstiness: float) -> None:
    assert statistics.fmean(gaps(burstiness)) == pytest.approx(1 / 8, rel=0.05)


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_the_gaps_vary_by_one_over_the_root_of_the_burstiness(burstiness: float) -> None:
    values = gaps(burstiness)
    variation = statistics.pstdev(values) / statistics.fmean(values)
    assert variation == pytest.approx(1 / math.sqrt(burstiness), rel=0.05)


def test_an_infinite_rate_is_all_at_once() -> None:
    assert arrival_times(3, math.inf, 1.0, seed=0) == [0.0, 0.0, 0.0]


def test_arrival_times_begin_at_zero_and_ascend() -> None:
    times = arrival_times(100, 3.0, 1.0, seed=5)
    assert times[0] == 0.0
    assert times == sorted(times)


def test_arrival_times_are_reproducible_by_seed() -> None:
    assert arrival_times(5, 1.0, 1.0, seed=1) == arrival_times(5, 1.0, 1.0, seed=1)
    assert arrival_times(5, 1.0, 1.0, seed=1) != arrival_times(5, 1.0, 1.0, seed=2)
