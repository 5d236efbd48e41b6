"""Memory: the resident bytes of the daemon's processes during an operation."""

import threading
from typing import Self

import psutil

LOOK_INTERVAL_S = 0.02
MB = 1e6


class Memory:
    """The resident memory of a process, sampled many times a second during the block."""

    def __init__(self, process: psutil.Process) -> None:
        self.before_mb = self.peak_mb = process.memory_info().rss / MB
        self._process = process
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        is_over = False
        while not is_over:
            is_over = self._ended.wait(LOOK_INTERVAL_S)
            self.peak_mb = max(self.peak_mb, self._process.memory_info().rss / MB)


def process_of(module: str) -> psutil.Process:
    """The one process among this one and its children that runs `python -m module`."""
    children = psutil.Process().children(recursive=True)
    return next(child for child in children if module in " ".join(child.cmdline()).split())
