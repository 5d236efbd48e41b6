"""The watchdog file: a loop that hangs is detected, and nothing else counts as a hang."""

import os
from collections.abc import Callable
from pathlib import Path

from daemon.processes.watchdog_file import MAX_STARVED, Watchdog, WatchdogFile


def make_watch(folder: Path, is_starved: Callable[[], bool] = lambda: False) -> Watchdog:
    """One check per second; a standstill counts after 3 s, a start after 100."""
    return Watchdog(folder, "engine", 1.0, 3.0, 100.0, is_starved)


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


def test_a_loop_that_is_starved_of_cpu_does_not_hang_but_not_for_ever(tmp_path: Path) -> None:
    starved = [True] * 10 + [False] * 100
    watch, watchdog_file = make_watch(tmp_path, starved.pop), WatchdogFile(tmp_path, "engine")
    starved.reverse()
    later(tmp_path, watchdog_file, 7)
    assert [watch.look() for _ in range(13)] == [0.0] * 13  # 3 s that count, and 10 that do not
    assert watch.look() == 14.0
    watch = make_watch(tmp_path, lambda: True)
    later(tmp_path, WatchdogFile(tmp_path, "engine"), 7)
    looks = [watch.look() for _ in range(100)]
    assert looks.index(3.0 + MAX_STARVED * 3.0 + 1.0) == 3 + MAX_STARVED * 3
    assert not any(looks[: 3 + MAX_STARVED * 3])
