"""The peers' harness with fake engines, and tdpipe through it for real."""

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from benchmarks.peers.__main__ import Candidate, candidates, main, run, table
from benchmarks.peers.workload import MODELS, Request, make_model, make_requests, write_requests
from tests.kernels import prepare_data_dir

FAKE = """
    import json, sys
    print("loading")
    print("RESULT " + json.dumps({result}))
    sys.exit({code})
"""


def fake(folder: Path, result: dict[str, float], code: int = 0) -> list[str]:
    """A command that answers as `run_engine.py` would."""
    path = folder / "fake.py"
    path.write_text(textwrap.dedent(FAKE).format(result=result, code=code))
    return [sys.executable, str(path)]


def test_requests_are_the_same_each_time_and_within_their_limits() -> None:
    requests = make_requests(50)
    assert requests == make_requests(50)
    assert max(len(request.prompt_token_ids) for request in requests) <= 1024
    assert max(request.num_output_tokens for request in requests) <= 512
    assert min(min(r.prompt_token_ids) for r in requests) >= 3


def test_the_rate_is_output_tokens_by_seconds(tmp_path: Path) -> None:
    candidate = Candidate("x", "vllm", Path(sys.executable))
    good = {"seconds": 2.0, "num_output_tokens": 100, "wrong": 0}
    good |= {"num_prompt_tokens": 40, "num_cached_tokens": 10}
    (result,) = run(candidate, fake(tmp_path, good), 60)
    assert (result.rate, result.cached_share) == (50.0, 0.25)
    with pytest.raises(RuntimeError, match="wanted numbers of tokens"):
        run(candidate, fake(tmp_path, good | {"wrong": 1}), 60)
    with pytest.raises(RuntimeError, match="exit code 3"):
        run(candidate, fake(tmp_path, good, 3), 60)


def test_an_engine_that_hangs_is_ended_with_its_workers(tmp_path: Path) -> None:
    worker = "import time; time.sleep(60)"
    path = tmp_path / "hangs.py"
    path.write_text(
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {worker!r}]).wait()"
    )
    with pytest.raises(RuntimeError, match="not ready within 1 s"):
        run(Candidate("x", "vllm", Path(sys.executable)), [sys.executable, str(path)], 1)
    found = [p for p in psutil.process_iter(["cmdline"]) if worker in (p.info["cmdline"] or [])]
    _, alive = psutil.wait_procs(found, timeout=10)  # the signal arrives a moment later
    assert not [p for p in alive if p.status() != psutil.STATUS_ZOMBIE]


def test_the_table_compares_the_best_of_ours_with_each() -> None:
    lines = table({"tdpipe, a": [100.0, 120.0], "tdpipe, b": [300.0], "vLLM": [150.0], "other": []})
    assert lines[2:] == [
        "| tdpipe, a | 110 | 100, 120 | 2.73 |",
        "| tdpipe, b | 300 | 300 | 1.00 |",
        "| vLLM | 150 | 150 | 2.00 |",
        "| other | not run | | |",
    ]


def test_engines_that_are_not_installed_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "llama-120m", tiny())
    arguments = [f"--folder={tmp_path}", "--requests=3", "--rounds=1", "--only=vLLM"]
    assert main(arguments) == 1
    captured = capsys.readouterr()
    names = [c.name for c in candidates(tmp_path, tmp_path) if "vLLM" in c.name]
    assert captured.err.count("is not there") == len(names) >= 2
    assert captured.out.count("not run") == len(names)


def tiny() -> dict[str, int]:
    """Sizes of a model that is made in a moment."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    return sizes | {"num_attention_heads": 2, "num_key_value_heads": 1}


@pytest.mark.long
def test_tdpipe_runs_the_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "llama-120m", tiny())
    model = make_model(tmp_path, "llama-120m")
    assert make_model(tmp_path, "llama-120m") == model
    path = tmp_path / "requests.json"
    write_requests([Request([5, 6, 7], 4), Request([8] * 20, 9)], path)
    assert len(json.loads(path.read_text())) == 2
    (ours, *_) = candidates(tmp_path, prepare_data_dir(tmp_path / "data"))
    quick = replace(ours, settings=dict(ours.settings) | {"profile_seconds": 0})
    (result,) = run(quick, quick.command(model, path, 1), 120)
    assert result.rate > 0
