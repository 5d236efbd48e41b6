"""Process priority: processes that compute yield the cores to those that need little CPU time."""

import os
import time
from contextlib import suppress
from pathlib import Path

# Linux lets non-root users set the niceness of a session ten times a second, else EAGAIN.
_NUM_TRIES, _PAUSE_S = 5, 0.15


def lower_priority(niceness: int) -> None:
    """Lower the priority of this process, and of all that it starts, by `niceness`.

    Linux may first divide its cores between sessions (autogroup), and then applies `nice` only
    within a session. Therefore a process that leads a session, as all child processes here do, also
    lowers the priority of its session.
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
