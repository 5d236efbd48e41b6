"""Standing back: who computes leaves the cores to those who want them for moments only."""

import os
import time
from contextlib import suppress
from pathlib import Path

# Linux lets who is not root set a session's niceness ten times a second, and says EAGAIN otherwise.
_NUM_TRIES, _PAUSE_S = 5, 0.15


def lower_priority(niceness: int) -> None:
    """Lower the priority of this process and of all that it starts, by Linux's `nice` of so much.

    Linux may share its cores between sessions first (autogroup), and then heeds `nice` only within
    one. A process that leads its session, as all do that we start, stands back with it.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            _nice_session(niceness)


def _nice_session(niceness: int) -> None:
    for _ in range(_NUM_TRIES):
        try:
            Path("/proc/self/autogroup").write_text(str(niceness))
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        else:
            return
