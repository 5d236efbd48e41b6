"""Memory: growth is seen."""

import psutil

from benchmarks.memory import Memory


def test_memory_that_grows_is_seen() -> None:
    with Memory(psutil.Process()) as memory:
        held = b"\1" * 60_000_000
    assert memory.peak_mb - memory.before_mb > 50
    assert held
