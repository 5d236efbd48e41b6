"""The agent of torchrun: the exit of each stage is recorded, whichever torchrun looks at first."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig

from daemon.processes.process_exits import ExitFile, ProcessExit
from daemon.processes.watchdog_file import WatchdogFile
from workers.comm import rendezvous
from workers.process import is_out_of_memory
from workers.stage_agent import StageAgent, StagePids

SLEEP_S = 60.0
SLEEP = f"import time; time.sleep({SLEEP_S})"


def stage(how: str, folder: Path) -> None:
    """Stage 1 ends in this way; stage 0 notices soon afterwards, and ends with code 1."""
    pid_file = folder / "pid"
    if os.environ["RANK"] == "1":
        pid_file.with_suffix(".new").write_text(str(os.getpid()))
        pid_file.with_suffix(".new").rename(pid_file)
        if how.isdigit():
            os._exit(int(how))
        os.kill(os.getpid(), signal.Signals[how])
        time.sleep(SLEEP_S)
    while not pid_file.exists() or is_running(int(pid_file.read_text())):
        time.sleep(0.01)
    time.sleep(0.5)
    os._exit(1)


def is_running(pid: int) -> bool:
    """Whether the process has not ended, however long its end takes."""
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def run(folder: Path, how: str) -> ProcessExit | None:
    """Run a group of two stages without restarts; the first exit, if there is one."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="run",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
    )
    meeting = rendezvous.OneHost(WatchdogFile(folder, "stages"), "run")
    agent = StageAgent(config, meeting, folder, stage, (how, folder), StagePids())
    assert agent.run().is_failed()
    return ExitFile(folder).first_of(all_pids(folder), 0.0)


def all_pids(folder: Path) -> range:
    """Whatever the stages' pids are."""
    assert folder.is_dir()
    return range(1, 2**22)


@pytest.mark.parametrize(
    ("how", "status"), [("SIGKILL", -9), ("SIGUSR1", -10), ("SIGABRT", -6), ("7", 7)]
)
def test_the_exit_of_the_stage_that_ended_first_is_recorded(
    tmp_path: Path, how: str, status: int
) -> None:
    first = run(tmp_path, how)
    assert first is not None
    assert (first.name, first.status, first.is_oom) == ("stage 1", status, False)


@pytest.mark.parametrize(("how", "status"), [("SIGSEGV", -11), ("7", 7)])
def test_an_exit_is_recorded_if_torchrun_reaps_the_stage_first(
    tmp_path: Path, how: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(*_: int) -> None:
        raise ChildProcessError

    monkeypatch.setattr(os, "waitid", too_late)
    first = run(tmp_path, how)
    assert first is not None
    assert (first.name, first.status, first.is_oom) == ("stage 1", status, False)


def torch_out_of_memory() -> RuntimeError:
    """What torch raises on a CPU."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60, dtype=torch.uint8)
    return raised.value


def test_exceptions_for_lack_of_memory_are_told_from_others() -> None:
    outer = ValueError("cannot load the model")
    outer.__cause__ = torch_out_of_memory()
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), outer):
        assert is_out_of_memory(error), error
    for other in (RuntimeError("shapes differ"), ValueError("memory"), KeyError("x")):
        assert not is_out_of_memory(other), other


def test_only_the_newest_stages_are_killed() -> None:
    sleepers = [subprocess.Popen([sys.executable, "-S", "-c", SLEEP]) for _ in range(3)]
    pids = StagePids()
    pids.kill()  # there are none yet
    try:
        pids.replace([sleepers[0].pid])
        pids.replace(sleeper.pid for sleeper in sleepers[1:])
        pids.kill()
        assert [sleeper.wait(10) for sleeper in sleepers[1:]] == [-signal.SIGKILL] * 2
        pids.kill()  # they have ended
        assert sleepers[0].poll() is None
    finally:
        sleepers[0].kill()
        sleepers[0].wait()
