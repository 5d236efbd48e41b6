"""`tdpipe simulate`: its figures, its files, and its errors of one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.policies.registry import POLICIES
from engine.trace.trace_file import read_trace
from simulator.command import main, make_arrivals
from simulator.workloads.request import Request, WorkloadError

NODE = ["--gpu", "L20", "--model", "llama2-13b", "--kv-tokens", "20000"]
WORKLOAD = ["--workload", "fixed:40:100:30"]


def figures(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON object that a simulation prints."""
    assert main([*NODE, *WORKLOAD, "--json", *arguments]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


@pytest.mark.parametrize("policy", POLICIES)
def test_the_json_object_has_the_documented_figures(
    capsys: pytest.CaptureFixture[str], policy: str
) -> None:
    result = figures(capsys, "--policy", policy, "--stages", "2")
    assert result["policy"] == policy
    assert result["num_output_tokens"] == 40 * 30
    assert result["output_tokens_per_s"] == pytest.approx(40 * 30 / result["makespan_s"])
    assert result["total_tokens_per_s"] == pytest.approx(40 * 130 / result["makespan_s"])
    assert len(result["bubble_ratio"]) == 2
    assert all(0 <= ratio < 1 for ratio in result["bubble_ratio"])
    assert {"switches", "steals", "preemptions"} <= set(result)
    assert result["share_of_bound"] == result["bound_s"] / result["makespan_s"]
    assert 0.3 < result["share_of_bound"] <= 1
    assert {"p50", "p90", "p99"} <= set(result["ttft_s"])
    assert {"p50", "p90", "p99"} <= set(result["tpot_s"])


def test_the_same_seed_gives_the_same_run(capsys: pytest.CaptureFixture[str]) -> None:
    def run(seed: str) -> dict[str, Any]:
        workload = ["--workload", "sharegpt:30", "--seed", seed, "--policy", "temporal"]
        result = figures(capsys, *workload)
        del result["took_s"]
        return result

    assert run("1") == run("1")
    assert run("1") != run("2")


def test_arrivals_stretch_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    at_once = figures(capsys)
    in_turn = figures(capsys, "--request-rate", "1")
    assert in_turn["makespan_s"] > at_once["makespan_s"]
    assert in_turn["ttft_s"]["p50"] < at_once["ttft_s"]["p50"]


def test_gpus_under_tensor_parallelism_are_one_stage(capsys: pytest.CaptureFixture[str]) -> None:
    result = figures(capsys, "--stages", "1", "--tensor-parallel", "4", "--policy", "separate")
    assert len(result["bubble_ratio"]) == 1


def test_the_trace_and_the_picture_are_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace, picture = tmp_path / "run.json", tmp_path / "run.svg"
    result = figures(capsys, "--trace", str(trace), "--timeline", str(picture), "--stages", "3")
    spans = read_trace(trace).spans
    assert len(spans) == 3 * result["steps"]
    assert max(span.ended_at for span in spans) <= result["makespan_s"] + 1e-6
    assert picture.read_text().lstrip().startswith("<?xml")


@pytest.mark.parametrize("flag", ["--trace", "--timeline"])
def test_a_file_of_another_command_is_kept(
    tmp_path: Path, flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.png"
    path.write_bytes(b"a plot of tdpipe profile")
    assert main([*NODE, *WORKLOAD, flag, str(path)]) == 2
    assert "exists and another command wrote it" in capsys.readouterr().err
    assert path.read_bytes() == b"a plot of tdpipe profile"
    for more in (["--overwrite"], []):
        assert main([*NODE, "--workload", "fixed:2:8:4", flag, str(path), *more]) == 0
    assert b"a plot" not in path.read_bytes()


def test_trace_and_timeline_cannot_be_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "node.png")
    assert main([*NODE, *WORKLOAD, "--trace", path, "--timeline", path]) == 2
    assert "are the same file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workload", "fixed:1:1:1"], "--profile CSV or --gpu"),
        ([*NODE, "--workload", "nonsense:3"], "unknown workload"),
        ([*NODE, "--workload", "demo:3"], "prompt_token_ids"),
        ([*NODE, *WORKLOAD, "--policy", "best"], "policy"),
        ([*NODE, *WORKLOAD, "--no-such-flag"], "--no-such-flag"),
        (["--gpu", "L21", "--model", "llama2-13b", *WORKLOAD], "L20"),
        (["--gpu", "L20", *WORKLOAD], "--model"),
        (["--gpu", "L4", "--model", "llama2-70b", *WORKLOAD], "does not fit"),
        (["--profile", "/nowhere.csv", *WORKLOAD], "--kv-tokens"),
        ([*NODE, "--workload", "fixed:1:3000:10"], "exceed"),
        ([*NODE, *WORKLOAD, "--kv-tokens", "15"], "fewer than a block, 16"),
        ([*NODE, *WORKLOAD, "--max-model-len", "30000"], "KV cache of 20000"),
    ],
)
def test_an_impossible_simulation_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert words in printed.err
    assert len(printed.err.strip().splitlines()) == 1


def test_an_invalid_profile_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "profile.csv"
    path.write_text("tokens,ms\n1,2\n")
    sizes = ["--kv-tokens", "20000", "--kv-bytes-per-token", "1e5", "--memory-bandwidth", "800"]
    assert main(["--profile", str(path), *sizes, *WORKLOAD]) == 2
    assert "Total Length,Execute Time" in capsys.readouterr().err


def test_predictions_have_the_given_error() -> None:
    requests = [Request((1, 2), 100)] * 50
    assert {a.predicted_len for a in make_arrivals(requests, 0.0, 0)} == {100}
    assert {a.predicted_len for a in make_arrivals(requests, None, 0)} == {0}
    noisy = [a.predicted_len for a in make_arrivals(requests, 0.5, 0)]
    assert len(set(noisy)) > 30
    assert noisy == [a.predicted_len for a in make_arrivals(requests, 0.5, 0)]


def test_requests_without_arrival_times_are_offline_work() -> None:
    (offline,) = make_arrivals([Request((1,), 5)], 0.0, 0)
    (online,) = make_arrivals([Request((1,), 5, arrival_s=0.0)], 0.0, 0)
    assert offline.offline
    assert not online.offline


def test_text_prompts_are_refused() -> None:
    with pytest.raises(WorkloadError, match="prompt_token_ids"):
        make_arrivals([Request("Hello", 5)], 0.0, 0)


@pytest.mark.parametrize("sigma", ["nan", "-1", "1000"])
def test_an_invalid_sigma_is_refused(sigma: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*NODE, *WORKLOAD, f"--prediction-sigma={sigma}"])
    assert "argument --prediction-sigma" in capsys.readouterr().err
