"""Restarts: which process is restarted when, how often, and what ends the daemon."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from configs.config import Config
from daemon import restart_limit, restarts
from daemon.processes import child_process
from daemon.processes.process_exits import TORCHRUN, ExitFile
from daemon.processes.watchdog_file import WatchdogFile
from daemon.restarts import Children, GivingUpError

Processes = dict[str, list["subprocess.Popen[bytes]"]]


@pytest.fixture
def incarnations() -> list[tuple[str, ...]]:
    """The module and the arguments of every process that is started."""
    return []


@pytest.fixture
def started(
    monkeypatch: pytest.MonkeyPatch, incarnations: list[tuple[str, ...]]
) -> Iterator[Processes]:
    """Every process that is started, by its module; each sleeps until it is ended."""
    processes: Processes = {}

    def start(*command: str, **_: Any) -> "subprocess.Popen[bytes]":
        incarnations.append(command)
        module = command[0]
        process = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        processes.setdefault(module, []).append(process)
        return process

    monkeypatch.setattr(child_process, "start", start)
    yield processes
    for each in processes.values():
        for process in each:
            process.kill()
            process.wait()


@pytest.fixture
def make(tmp_path: Path, started: Processes) -> Callable[..., Children]:
    """Children that have been started, with these settings."""
    assert not started

    def make_children(**settings: Any) -> Children:
        config = Config.of(**{"runtime_dir": tmp_path, **settings})
        family = Children(
            config.pipeline, config.predictor, tmp_path, ("server", "engine", "stages")
        )
        family.start()
        return family

    return make_children


def kill(started: Processes, module: str) -> None:
    """End the newest process of a module."""
    started[module][-1].kill()
    started[module][-1].wait()


def count(started: Processes) -> dict[str, int]:
    """How often each has been started."""
    return {module: len(processes) for module, processes in started.items()}


def test_an_engine_is_restarted_without_its_stages_and_the_reverse(
    make: Callable[..., Children], started: Processes
) -> None:
    family = make()
    for module in ("engine", "workers"):
        kill(started, module)
        family.look()
    assert count(started) == {"server": 1, "engine": 2, "workers": 2}


def test_the_exit_of_torchrun_is_recorded_for_the_engine_and_no_other(
    make: Callable[..., Children], started: Processes, tmp_path: Path
) -> None:
    family = make()
    for module in ("engine", "workers"):
        kill(started, module)
        family.look()
    found = ExitFile(tmp_path).first_of([], since=0.0)
    assert found is not None
    assert (found.stage, found.pid) == (TORCHRUN, started["workers"][0].pid)
    assert (found.status, found.is_oom) == (-signal.SIGKILL, False)


def test_without_its_server_a_daemon_ends(
    make: Callable[..., Children], started: Processes
) -> None:
    family = make()
    kill(started, "server")
    end = "the server was killed by SIGKILL and is not restarted"
    with pytest.raises(GivingUpError, match=end):
        family.look()


def test_too_many_restarts_in_a_window_are_the_end(
    make: Callable[..., Children], started: Processes
) -> None:
    family = make(max_restarts=2)
    for _ in range(2):
        kill(started, "engine")
        family.look()
    kill(started, "engine")
    end = r"the engine was .*; giving up after 2 restarts in 600 s"
    with pytest.raises(GivingUpError, match=end):
        family.look()


def test_restarts_long_ago_do_not_count(
    make: Callable[..., Children], started: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, now = make(max_restarts=1), [0.0]
    monkeypatch.setattr(restart_limit.time, "monotonic", lambda: now[0])
    for _ in range(5):
        kill(started, "engine")
        family.look()
        now[0] += 601
    assert count(started)["engine"] == 6


def test_a_process_that_hangs_is_ended_and_restarted(
    make: Callable[..., Children], started: Processes, tmp_path: Path
) -> None:
    family = make(heartbeat_timeout=10 * restarts.POLL_INTERVAL_S)
    WatchdogFile(tmp_path, "engine").beat()
    for _ in range(10):
        family.look()
    assert count(started)["engine"] == 1
    for _ in range(2):
        family.look()
    assert count(started)["engine"] == 2
    assert started["engine"][0].poll() is not None


def test_a_daemon_continues_without_a_predictor_that_keeps_dying(
    make: Callable[..., Children], started: Processes, tmp_path: Path
) -> None:
    family = make(predictor=str(tmp_path), max_restarts=1)
    for _ in range(2):
        kill(started, "predictor")
        family.look()
    family.look()
    assert count(started)["predictor"] == 2


def test_each_but_the_server_gets_the_number_of_its_incarnation(
    make: Callable[..., Children],
    started: Processes,
    incarnations: list[tuple[str, ...]],
    tmp_path: Path,
) -> None:
    family = make(predictor=str(tmp_path))
    for module in ("engine", "workers", "predictor"):
        kill(started, module)
        family.look()
    folder = str(tmp_path)
    assert incarnations == [
        ("server", folder),
        *((module, folder, "0") for module in ("engine", "workers", "predictor")),
        *((module, folder, "1") for module in ("engine", "workers", "predictor")),
    ]


def test_a_failure_that_no_restart_can_mend_is_reported_in_its_own_words(
    make: Callable[..., Children], started: Processes, tmp_path: Path
) -> None:
    family = make()
    child_process.report_failure(tmp_path, "stage 1: the file is torn")
    kill(started, "workers")
    with pytest.raises(GivingUpError, match=r"^stage 1: the file is torn$"):
        family.look()


def test_a_process_that_is_ending_is_not_restarted(
    make: Callable[..., Children], started: Processes
) -> None:
    family = make()
    kill(started, "server")
    kill(started, "engine")
    family.look(ending="server")
    assert count(started) == {"server": 1, "engine": 2, "workers": 1}
