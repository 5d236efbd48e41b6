"""`tdpipe run-batch` with the demo model: it is interrupted and killed, and resumes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from demo.tasks import held_out
from tests.end_to_end.daemon import ROOT, all_gone
from tests.kernels import prepare_data_dir
from tests.server.batches.world import by_custom_id

NUM_REQUESTS = 60
PATIENCE_S = 120.0
TASKS = held_out(NUM_REQUESTS, seed=23)


def write_input(path: Path, *, extra: str = "") -> None:
    """The tasks as requests."""
    with path.open("w") as file:
        for i, task in enumerate(TASKS):
            body = {"model": "tdpipe-demo", "prompt": task.prompt, "max_tokens": 600}
            line = {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions"}
            file.write(json.dumps(line | {"body": body | {"temperature": 0}}) + "\n")
        file.write(extra)


def start(folder: Path, output: str = "out.jsonl") -> "subprocess.Popen[str]":
    """Start the command."""
    command = [sys.executable, str(ROOT / "tdpipe.py"), "run-batch", "-i", "in.jsonl", "-o", output]
    command += ["--data-dir", str(prepare_data_dir(folder / "data")), "--profile-seconds", "0.3"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TDPIPE_")}
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Its exit code and its output."""
    _, printed = process.communicate(timeout=PATIENCE_S)
    return process.returncode, printed


def num_written(folder: Path) -> int:
    """Whole answers so far."""
    path = folder / "out.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def end_early(folder: Path, after: int, number: signal.Signals) -> int:
    """Send a signal once this many answers are written; returns the exit code."""
    process = start(folder)
    deadline = time.monotonic() + PATIENCE_S
    while num_written(folder) < after:
        assert process.poll() is None, end(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    others = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    code, _ = end(process)
    assert others
    assert all_gone(others, 10)
    return code


@pytest.mark.parametrize(
    ("signals", "more_runs"),
    [
        ((signal.SIGKILL,), 0),
        pytest.param((signal.SIGINT, signal.SIGKILL), 1, marks=pytest.mark.long),
    ],
)
def test_a_run_resumes_after_an_interruption_and_after_a_kill(
    signals: tuple[signal.Signals, ...], more_runs: int, tmp_path: Path
) -> None:
    write_input(tmp_path / "in.jsonl")
    for number in signals:
        code = end_early(tmp_path, num_written(tmp_path) + 5, number)
        assert code == (130 if number == signal.SIGINT else -number)
        assert 5 <= num_written(tmp_path) < NUM_REQUESTS
    output = tmp_path / "out.jsonl"
    output.write_bytes(output.read_bytes()[:-7])  # as if it had been killed within a line
    code, printed = end(start(tmp_path))
    assert code == 0, printed
    assert f"{NUM_REQUESTS} of {NUM_REQUESTS} requests succeeded" in printed
    assert "tokens/s" in printed
    texts = {
        custom_id: answer["response"]["body"]["choices"][0]["text"]
        for custom_id, answer in by_custom_id(output.read_text()).items()
    }
    assert texts.keys() == {f"r{i}" for i in range(NUM_REQUESTS)}
    right = sum(texts[f"r{i}"] == task.answer for i, task in enumerate(TASKS))
    assert right >= 0.95 * NUM_REQUESTS
    before = output.read_bytes()
    for _ in range(more_runs):  # nothing is left to do
        assert end(start(tmp_path))[0] == 0
        assert output.read_bytes() == before


@pytest.mark.parametrize(
    ("extra", "output", "words"),
    [
        ('{"custom_id": 1}\n', "out.jsonl", [f"in.jsonl, line {NUM_REQUESTS + 1}: "]),
        ("nonsense\n" * 30, "out.jsonl", ["not parseable as valid JSON", "more lines like these"]),
        ("", "in.jsonl", ["in.jsonl is also the input"]),
        ("", "other", ["other exists and does not hold answers"]),
        ("", "nowhere/out.jsonl", ["cannot write to nowhere/out.jsonl: No such file"]),
    ],
)
def test_bad_files_are_reported_in_lines_and_not_changed(
    extra: str, output: str, words: list[str], tmp_path: Path
) -> None:
    write_input(tmp_path / "in.jsonl", extra=extra)
    (tmp_path / "other").write_text("mine\n")
    before = (tmp_path / "in.jsonl").read_bytes()
    code, printed = end(start(tmp_path, output))
    assert code == 2
    assert "Traceback" not in printed
    assert len(printed.splitlines()) <= 11
    for word in words:
        assert word in printed
    assert (tmp_path / "in.jsonl").read_bytes() == before
    assert (tmp_path / "other").read_text() == "mine\n"
