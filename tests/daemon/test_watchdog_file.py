"""The watchdog file: a loop that hangs is detected, and nothing else counts as a hang."""

import os
from pathlib import Path

from daemon.watchdog_file import Watchdog, WatchdogFile


def make_watch(folder: Path) -> Watchdog:
    """One check per second; a standstill counts after 3 s, a start after 100."""
    return Watchdog(folder, "engine", 1.0, 3.0, 100.0)


def later(folder: Path, watchdog_file: WatchdogFile, seconds: int) -> None:
    """A beat with a time of its own: the clocks of file systems are coarse."""
    watchdog_file.beat()
    os.utime(folder / "engine.watchdog", (seconds, seconds))


def test_before_its_first_beat_a_process_may_take_long_but_not_for_ever(tmp_path: Path) -> None:
    watch = make_watch(tmp_path)
    assert [watch.look() for _ in range(100)] == [0.0] * 100
    assert watch.look() == 101.0


def test_a_loop_that_beats_is_not_ended(tmp_path: Path) -> None:
    watch, watchdog_file = make_watch(tmp_path), WatchdogFile(tmp_path, "engine")
    for second in range(50):
        later(tmp_path, watchdog_file, second // 3)
        assert watch.look() == 0.0


def test_a_loop_that_hangs_is_detected(tmp_path: Path) -> None:
    watch, watchdog_file = make_watch(tmp_path), WatchdogFile(tmp_path, "engine")
    later(tmp_path, watchdog_file, 7)
    assert [watch.look() for _ in range(5)] == [0.0, 0.0, 0.0, 4.0, 5.0]
    later(tmp_path, watchdog_file, 8)
    assert watch.look() == 0.0


def test_the_beats_of_the_last_process_are_not_those_of_the_next(tmp_path: Path) -> None:
    WatchdogFile(tmp_path, "engine").beat()
    watch = make_watch(tmp_path)
    assert [watch.look() for _ in range(10)] == [0.0] * 10
