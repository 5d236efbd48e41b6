"""Child processes: a child ends with its parent, and the first root cause is the one reported."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from daemon.processes.child_process import report_failure, reported_failure

ROOT = Path(__file__).parents[3]
PATIENCE_S = 30.0

CHILD = """
import sys, time
from daemon.processes import child_process
if "watch only" in sys.argv:
    child_process.ctypes.CDLL = lambda _: None  # no parent-death signal, as elsewhere than on Linux
child_process.tie_to_parent()
print("tied", flush=True)
time.sleep(600)
"""
# Starts the child, prints its id once it is tied, and waits.
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""


def wait_until(happens: Callable[[], bool]) -> bool:
    """Poll for a bounded time."""
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_gone(process: psutil.Process) -> bool:
    """Ended, even if it has not been waited for yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("watch", [[], ["watch only"]])
def test_a_tied_child_dies_with_a_parent_that_was_killed(watch: list[str]) -> None:
    command = [sys.executable, "-c", PARENT, CHILD, *watch]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        try:
            assert not is_gone(child)
            os.kill(parent.pid, signal.SIGKILL)
            assert wait_until(lambda: is_gone(child))
        finally:
            parent.kill()
            if not is_gone(child):
                child.kill()


def test_the_first_failure_is_kept(tmp_path: Path) -> None:
    report_failure(tmp_path, "stage 1: no weights")
    report_failure(tmp_path, "stage 0: connection closed")
    assert reported_failure(tmp_path) == "stage 1: no weights"


def test_a_failure_is_reported_in_one_line(tmp_path: Path) -> None:
    report_failure(tmp_path, "  no space:\n   2 bytes\n")
    assert reported_failure(tmp_path) == "no space: 2 bytes"


def test_no_report_is_no_failure(tmp_path: Path) -> None:
    assert reported_failure(tmp_path) is None
    assert reported_failure(tmp_path / "no such folder") is None
    report_failure(tmp_path, "")
    assert reported_failure(tmp_path) is None


@pytest.mark.parametrize("is_full", [False, True])
def test_a_failure_that_cannot_be_left_is_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_full: bool
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        report_failure(tmp_path if is_full else tmp_path / "nowhere", "stage 1:\nno weights")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (record,) = caplog.records
    assert record.getMessage().startswith("stage 1: no weights; this could not be written to ")
    assert reported_failure(tmp_path) is None


@pytest.mark.parametrize(
    ("ending", "code"),
    [("return 3", 3), ("sys.exit(4)", 4), ("sys.exit()", 0), ("sys.exit('x')", 1)],
)
def test_a_process_leaves_with_its_status_and_nothing_runs_after(ending: str, code: int) -> None:
    script = f"""
import atexit, sys
from daemon.processes import child_process
def main():
    atexit.register(print, "apart")
    print("said")
    {ending}
child_process.leave_with(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout) == (code, "said\n")
