"""CPU waits: processes that want a CPU and do not get it, and those that only sleep."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from daemon.processes.cpu_waits import CpuWaits, cpu_wait_s

SPIN = "while True: pass"
SLEEP = "import time; time.sleep(600)"


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Four processes that spin on the same CPU, and one that sleeps there."""
    cpu = min(os.sched_getaffinity(0))
    started = [
        subprocess.Popen([sys.executable, "-S", "-c", f"import os\n{code}"])
        for code in [f"os.sched_setaffinity(0, [{cpu}])\n{each}" for each in [SPIN] * 4 + [SLEEP]]
    ]
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.skipif(not cpu_wait_s(1) and not cpu_wait_s(os.getpid()), reason="not counted here")
def test_processes_that_share_a_cpu_are_starved_and_a_sleeping_one_is_not(
    processes: list["subprocess.Popen[bytes]"],
) -> None:
    time.sleep(0.5)  # until they have started
    spinning, sleeping = CpuWaits(), CpuWaits()
    pids = [process.pid for process in processes]
    assert not spinning.are_starved(pids[:4])  # nothing to compare with
    assert not sleeping.are_starved(pids[4:])
    time.sleep(1.0)
    assert spinning.are_starved(pids[:4])
    assert not sleeping.are_starved(pids[4:])


def test_a_process_is_starved_if_it_waits_for_half_of_the_time() -> None:
    now, wait_s = 10.0, 3.0
    waits = CpuWaits(lambda _: wait_s, lambda: now)
    assert not waits.are_starved([5])
    now, wait_s = 11.0, 3.4
    assert not waits.are_starved([5])
    now, wait_s = 12.0, 4.0
    assert waits.are_starved([5])
    assert not waits.are_starved([6])  # another process


def test_a_process_that_is_gone_is_not_starved() -> None:
    waits = CpuWaits()
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    child.wait()
    assert not waits.are_starved([child.pid])
    assert not waits.are_starved([child.pid])
