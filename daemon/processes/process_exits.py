"""Process exits: how the stages and their torchrun ended, written by the parent of each.

Only the parent of a process learns its exit status, and the engine is not the parent of the stages.
Therefore each parent appends a line to a file in the runtime folder, which the engine reads when it
misses a stage.
"""

import json
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from daemon.processes import ranks

FILE = "exits.jsonl"
TORCHRUN = -1
"""The number that stands for the stages' torchrun instead of a stage."""


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """The end of a stage's process, or of torchrun, at `at` (seconds of the monotonic clock).

    `status` is its exit code, or the negative number of the signal that has killed it. `is_oom` is
    whether that was the kernel's OOM killer.
    """

    stage: int
    pid: int
    status: int
    is_oom: bool = False
    at: float = field(default_factory=time.monotonic)
    tensor_rank: int = 0

    @property
    def name(self) -> str:
        """What has ended, for the log."""
        if self.stage == TORCHRUN:
            return "the stages' torchrun"
        return ranks.describe(self.stage, self.tensor_rank)

    @property
    def code(self) -> str:
        """The name of the signal, or the exit code."""
        return signal_name(-self.status) if self.status < 0 else str(self.status)

    def __str__(self) -> str:
        return f"{self.name} {describe(self.status, is_oom=self.is_oom)}"


def describe(status: int, *, is_oom: bool = False) -> str:
    """How a process ended, as the rest of a sentence."""
    if status >= 0:
        return f"ended with code {status}"
    name = signal_name(-status)
    return f"was killed by {name}" + " of the kernel's OOM killer (out of memory)" * is_oom


def signal_name(number: int) -> str:
    """The name of a signal; real-time signals have only numbers."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def zombie_status(pid: int) -> int | None:
    """The status of a process that its parent has not reaped, or whose last threads still end.

    At a load of 8, the parent of a killed stage learnt of its end up to 1.2 s after the main thread
    had become a zombie: the other threads needed a CPU to end. None for any other process.
    """
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        if fields[0] == "Z":
            return os.waitstatus_to_exitcode(int(fields[49]))  # proc_pid_stat(5): exit_code
    return None


class ExitFile:
    """The exits of the daemon in `folder`; several processes may append at the same time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def append(self, ended: ProcessExit) -> None:
        """Add a line; on a full disk the exit remains unknown."""
        line = json.dumps(asdict(ended)) + "\n"
        with suppress(OSError):
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)

    def first_of(self, pids: Collection[int], since: float) -> ProcessExit | None:
        """The first exit after `since` (seconds) of these processes or of torchrun, if known.

        The first one is the cause: the others end because of it.
        """
        lines: list[str] = []
        with suppress(OSError):
            lines = self._path.read_text().splitlines()
        exits = [ProcessExit(**json.loads(line)) for line in lines if line.endswith("}")]
        return min(
            (e for e in exits if e.at > since and (e.pid in pids or e.stage == TORCHRUN)),
            key=lambda e: e.at,
            default=None,
        )
