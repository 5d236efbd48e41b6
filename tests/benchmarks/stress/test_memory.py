"""Memory: growth is detected."""

import mmap

import psutil

from benchmarks.stress.memory import Memory


def test_memory_that_grows_is_seen() -> None:
    # The system's own pages: memory that an allocator keeps is not growth.
    with Memory(psutil.Process()) as memory, mmap.mmap(-1, 60_000_000) as held:
        held.write(bytes(len(held)))
    assert memory.peak_mb - memory.before_mb > 50
