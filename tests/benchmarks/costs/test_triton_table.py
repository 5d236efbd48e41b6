"""Triton's kernels compile without a GPU, spill nothing and fit the shared memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--kinds=1", "--capabilities", "86", "90"],
        pytest.param([], marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ],
    ids=["one kind", "everything"],
)
def test_no_kernel_spills_or_needs_too_much_shared_memory(arguments: list[str]) -> None:
    pytest.importorskip("triton")
    # In a process of its own: in this one the kernels are defined for the interpreter.
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.costs.triton_table", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) >= 2 + 4 + 5
    assert all(line.count("|") == rows[0].count("|") for line in rows)
