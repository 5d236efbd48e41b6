"""The keys of a terminal, one at a time, without waiting for a line."""

import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_keys() -> Iterator[None]:
    """Within the block, keys arrive as they are pressed, and are not shown; Ctrl-C still works."""
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def pressed(timeout_s: float) -> str:
    """The keys that were pressed, waiting at most so long for the first."""
    terminal = sys.stdin.fileno()
    if not select.select([terminal], [], [], timeout_s)[0]:
        return ""
    return os.read(terminal, 64).decode(errors="replace")
