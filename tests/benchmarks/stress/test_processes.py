"""Processes: steady growth is reported, and noise is not."""

from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from benchmarks.stress.processes import (
    MIN_SAMPLES,
    MOST_DESCRIPTORS,
    SETTLED_S,
    Processes,
    ProcessSamples,
)


def process(mb_per_minute: float = 0.0, descriptors_per_minute: float = 0.0) -> ProcessSamples:
    """A process that runs for long, with a little noise."""
    seconds = [2.0 * i for i in range(int(SETTLED_S))]
    return ProcessSamples(
        "server",
        seconds,
        [100 + i % 7 + mb_per_minute * at / 60 for i, at in enumerate(seconds)],
        [20 + i % 5 + int(descriptors_per_minute * at / 60) for i, at in enumerate(seconds)],
    )


def test_noise_is_not_a_leak() -> None:
    assert not [*process().problems()]
    assert abs(process().mb_per_minute()) < 0.05


def test_memory_and_descriptors_that_grow_are_reported() -> None:
    (problem,) = process(mb_per_minute=0.7).problems()
    assert problem == "the server grows by 0.70 MB a minute"
    (problem,) = process(descriptors_per_minute=2.0).problems()
    assert "descriptors more than at first" in problem


@pytest.mark.parametrize("count", [1, MIN_SAMPLES - 1])
def test_a_short_run_reports_nothing(count: int) -> None:
    short = process(mb_per_minute=50.0, descriptors_per_minute=500.0)
    for column in (short.at, short.used_mb, short.descriptors):
        del column[count:]
    assert not [*short.problems()]


def test_descriptors_that_stay_open_are_reported_at_rest() -> None:
    processes, own = Processes(), psutil.Process()
    processes.look("test", own, 0.0)
    assert not [*processes.left_over("test", own)]
    with ExitStack() as stack:
        for _ in range(MOST_DESCRIPTORS + 1):
            stack.enter_context(Path("/dev/null").open())
        (problem,) = processes.left_over("test", own)
    assert "descriptors at rest" in problem


def test_a_process_that_has_ended_has_no_samples() -> None:
    processes, own = Processes(), psutil.Process()
    gone = psutil.Popen(["true"])
    gone.wait()
    for at in range(MIN_SAMPLES):
        processes.look("test", own, float(at))
        processes.look("gone", gone, float(at))
    assert not processes.of("gone")
    (mine,) = processes.of("test")
    assert len(mine.at) == MIN_SAMPLES
    assert min(mine.used_mb) > 1
    header, line = processes.table()
    assert line.startswith("test")
    assert len(header) == len(line)
