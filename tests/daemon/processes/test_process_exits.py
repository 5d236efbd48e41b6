"""Process exits: who ended first, and how."""

import json
from pathlib import Path

import pytest

from daemon.processes.process_exits import FILE, TORCHRUN, ExitFile, ProcessExit, describe


def test_the_first_exit_of_the_group_is_the_cause(tmp_path: Path) -> None:
    exits = ExitFile(tmp_path)
    assert exits.first_of([1, 2], 0.0) is None
    for stage, pid, at in ((5, 9, 1.0), (0, 1, 4.0), (1, 2, 3.0)):
        exits.append(ProcessExit(stage, pid, -9, at=at))
    assert exits.first_of([1, 2], 0.0) == ProcessExit(1, 2, -9, at=3.0)
    assert exits.first_of([1, 2], 3.0) == ProcessExit(0, 1, -9, at=4.0)
    assert exits.first_of([1, 2], 4.0) is None
    exits.append(ProcessExit(TORCHRUN, 99, 1, at=5.0))
    found = exits.first_of([1, 2], 4.0)
    assert found is not None
    assert found.stage == TORCHRUN  # with it all stages end


def test_a_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    exits = ExitFile(tmp_path)
    exits.append(ProcessExit(0, 1, 1, at=5.0))
    with (tmp_path / FILE).open("a") as file:
        file.write(json.dumps({"stage": 1, "pid": 2})[:-3])
    assert exits.first_of([1, 2], 0.0) == ProcessExit(0, 1, 1, at=5.0)


def test_an_exit_that_cannot_be_written_is_unknown(tmp_path: Path) -> None:
    exits = ExitFile(tmp_path / "missing")
    exits.append(ProcessExit(0, 1, 1))
    assert exits.first_of([1], 0.0) is None


@pytest.mark.parametrize(
    ("status", "text"),
    [(0, "ended with code 0"), (3, "ended with code 3"), (-15, "was killed by SIGTERM")],
)
def test_a_status_is_described(status: int, text: str) -> None:
    assert describe(status) == text


def test_a_real_time_signal_has_no_name() -> None:
    assert describe(-40) == "was killed by signal 40"
