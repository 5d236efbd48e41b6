"""The pulse: a loop that stands still is found out, and nobody is blamed for anything else."""

import os
from pathlib import Path

from daemon.watchdog_file import Pulse, PulseWatch


def make_watch(folder: Path) -> PulseWatch:
    """A look a second; a standstill counts after 3 s, a start after 100."""
    return PulseWatch(folder, "engine", 1.0, 3.0, 100.0)


def later(folder: Path, pulse: Pulse, seconds: int) -> None:
    """A beat with a time of its own: file systems' clocks are coarse."""
    pulse.beat()
    os.utime(folder / "engine.pulse", (seconds, seconds))


def test_before_its_first_beat_a_process_may_take_long_but_not_for_ever(tmp_path: Path) -> None:
    watch = make_watch(tmp_path)
    assert [watch.look() for _ in range(100)] == [0.0] * 100
    assert watch.look() == 101.0


def test_a_loop_that_beats_is_left_alone(tmp_path: Path) -> None:
    watch, pulse = make_watch(tmp_path), Pulse(tmp_path, "engine")
    for second in range(50):
        later(tmp_path, pulse, second // 3)
        assert watch.look() == 0.0


def test_a_loop_that_stands_still_is_found_out(tmp_path: Path) -> None:
    watch, pulse = make_watch(tmp_path), Pulse(tmp_path, "engine")
    later(tmp_path, pulse, 7)
    assert [watch.look() for _ in range(5)] == [0.0, 0.0, 0.0, 4.0, 5.0]
    later(tmp_path, pulse, 8)
    assert watch.look() == 0.0


def test_the_beats_of_the_last_process_are_not_those_of_the_next(tmp_path: Path) -> None:
    Pulse(tmp_path, "engine").beat()
    watch = make_watch(tmp_path)
    assert [watch.look() for _ in range(10)] == [0.0] * 10
