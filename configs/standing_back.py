"""Standing back: who computes leaves the cores to those who want them for moments only."""

import os
from contextlib import suppress
from pathlib import Path


def stand_back(niceness: int) -> None:
    """Lower the priority of this process and of all that it starts, to Linux's `nice` of so much.

    Linux may share its cores between sessions first (autogroup), and then heeds `nice` only within
    one. Each process that we start has a session of its own.
    """
    os.nice(niceness)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(niceness))
