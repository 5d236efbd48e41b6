"""Memory: growth is detected."""

import subprocess
import sys

import psutil

from benchmarks.stress.memory import Memory

GROWS = "print(flush=True); input(); held = b'x' * 60_000_000; print(flush=True); input()"


def test_memory_that_grows_is_seen() -> None:
    # A process of its own: what this one frees meanwhile would hide the growth.
    with subprocess.Popen(
        [sys.executable, "-c", GROWS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        with Memory(psutil.Process(process.pid)) as memory:
            process.stdin.write(b"\n")
            process.stdin.flush()
            process.stdout.readline()
        process.stdin.write(b"\n")
    assert memory.peak_mb - memory.before_mb > 50
