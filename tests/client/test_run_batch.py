"""`tdpipe run-batch`: what it refuses before anything is started."""

import os
from pathlib import Path

import pytest

from client.run_batch import BAD_INPUT, main


def test_a_pipe_is_refused_because_it_can_be_read_only_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert main(["-i", str(tmp_path / "pipe"), "-o", str(tmp_path / "out.jsonl")]) == BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tdpipe: error: ")
    assert "not a regular file" in line
    assert not (tmp_path / "out.jsonl").exists()
