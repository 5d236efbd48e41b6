"""Stages that fail to start: the engine waits up to its limits and reports the cause."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import loader
from configs.config import Config
from daemon.processes import child_process
from wire.messages import StageFailed, Stats, ToServer
from wire.sockets import Spoke

PATIENCE_S = 30.0


class Engine:
    """An engine process, and the failure that it reports."""

    def __init__(self, folder: Path, **settings: float) -> None:
        self.config = Config.of(**{"model": "none", "runtime_dir": folder, **settings})
        loader.save(self.config, folder)
        self.process = child_process.start("engine", str(folder), "0")

    def send(self, *failed: StageFailed) -> None:
        """Send the messages of a stage that could not start."""
        stage = Spoke[None](self.config.runtime.stage_address, "failed-0", None)
        stage.send(*failed)
        stage.close(PATIENCE_S)

    def trouble(self) -> str:
        """Wait for `Stats.trouble` while the engine runs."""
        with Spoke[ToServer](self.config.runtime.server_address, "server", ToServer) as server:
            deadline = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline:
                server.wait(0.5)
                for message in server.drain():
                    if isinstance(message, Stats) and message.trouble:
                        return message.trouble
        raise AssertionError("no trouble")

    def failure(self) -> str | None:
        """The failure that the engine has reported when it has ended."""
        assert self.process.wait(PATIENCE_S) == 1
        return child_process.reported_failure(self.config.runtime.folder)


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """A list of processes, all of which are killed at the end."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def test_starts_that_fail_are_counted_as_restarts(
    tmp_path: Path, processes: list["subprocess.Popen[bytes]"]
) -> None:
    engine = Engine(tmp_path, max_restarts=1)
    processes.append(engine.process)
    # Two stages of one epoch are one start.
    engine.send(*(StageFailed(0, epoch, -1, "no device") for epoch in (2, 2, 3)))
    failure = engine.failure()
    assert failure is not None
    assert failure.startswith("stage 0 failed: no device; giving up after 1 restarts")


def test_stages_that_do_not_reach_each_other_may_retry_until_the_start_timeout(
    tmp_path: Path, processes: list["subprocess.Popen[bytes]"]
) -> None:
    engine = Engine(tmp_path, max_restarts=1, stage_start_timeout=4)
    processes.append(engine.process)
    epochs = range(2, 7)
    engine.send(*(StageFailed(0, epoch, -1, "no route", is_apart=True) for epoch in epochs))
    assert engine.trouble() == "stage 0 failed: no route"
    assert engine.failure() == (
        "not all 2 stages were ready within 4 s (stage_start_timeout); stage 0 failed: no route; "
        "see the messages of the stages in the log, or raise stage_start_timeout if loading is slow"
    )


def test_a_failure_that_ends_the_daemon_is_not_tried_again(
    tmp_path: Path,
    processes: list["subprocess.Popen[bytes]"],
    capfd: pytest.CaptureFixture[str],
) -> None:
    engine = Engine(tmp_path, max_restarts=0)
    processes.append(engine.process)
    child_process.report_failure(tmp_path, "stage 0: no device")  # as the stage does
    engine.send(
        StageFailed(0, 2, -1, "no device"), StageFailed(0, 3, -1, "no route", is_apart=True)
    )
    assert engine.trouble() == "stage 0 failed: no route"
    assert engine.process.poll() is None
    assert "restarting" not in capfd.readouterr().err
