"""The benchmark of links: each of them hands the bytes over, and the table has all figures."""

import multiprocessing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.costs import links
from benchmarks.costs.links import main, shared_memory, unix_socket

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # fork beside threads


def other_side(make: Any, folder: str, num_trips: int) -> None:
    """The process that receives."""
    with make(1, 100_000, folder) as trip:
        for _ in range(num_trips):
            trip()


@pytest.mark.parametrize("kind", [unix_socket, shared_memory])
def test_a_round_trip_ends_when_the_other_side_has_answered(kind: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    make = kind
    if kind is shared_memory:
        make = partial(kind, semaphores=[context.Semaphore(0), context.Semaphore(0)])
    process = context.Process(target=other_side, args=(make, str(tmp_path), 3), daemon=True)
    process.start()
    with make(0, 100_000, str(tmp_path)) as trip:
        for _ in range(3):
            trip()
    process.join(20)
    assert process.exitcode == 0


def test_all_links_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(links, "SIZES", (1000, 200_000))
    assert main(["--trips", "5", "--runs", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} == {8}
    assert len(rows) == 4
