"""Process priority: processes that compute leave the cores to those that need them for moments."""

import os
import time
from contextlib import suppress
from pathlib import Path

# Linux lets users but root set a session's niceness only ten times a second: EAGAIN otherwise.
_NUM_TRIES, _PAUSE_S = 5, 0.15


def lower_priority(niceness: int) -> None:
    """Lower the priority of this process and of all that it starts, by a `nice` of this much.

    Linux may share its cores between sessions first (autogroup), and then applies `nice` only
    within one. A process that leads its session, as all child processes here do, lowers its
    session's priority as well.
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
