"""The cells of the matrix: which fault is inflicted on which process at which moment."""

from dataclasses import dataclass
from typing import Literal

Fault = Literal["kill", "stop", "raise", "memory error", "cut link"]
Process = Literal[
    "first stage",
    "middle stage",
    "last stage",
    "torchrun",
    "engine",
    "predictor",
    "server",
    "supervisor",
]
Moment = Literal["idle", "prefill", "switch", "decode", "batch"]

FAULTS: tuple[Fault, ...] = ("kill", "stop", "raise", "memory error", "cut link")
MOMENTS: tuple[Moment, ...] = ("idle", "prefill", "switch", "decode", "batch")
STAGES: tuple[Process, ...] = ("first stage", "middle stage", "last stage")
# Those that take the daemon with them come last: the others share one.
MORTAL: tuple[Process, ...] = ("server", "supervisor")
PROCESSES: tuple[Process, ...] = (*STAGES, "torchrun", "engine", "predictor", *MORTAL)

NOTICE_S: dict[Process, float] = {
    **dict.fromkeys((*STAGES, "torchrun", "engine", "supervisor"), 2.0),
    # A large request may hold up the server's loop, and no request waits for the predictor.
    "server": 12.0,
    "predictor": 35.0,
}
"""Seconds in which a fault must be noticed."""

STALL_S = 2.0
"""Seconds for which /health may be green while nothing works."""

AT_ONCE: tuple[Fault, ...] = ("kill", "stop")
"""Faults that affect an idle process. The others take effect with the next request."""

SHORT = {
    ("kill", "last stage", "decode"),
    ("stop", "middle stage", "prefill"),
    ("raise", "first stage", "switch"),
    ("memory error", "middle stage", "batch"),
    ("cut link", "last stage", "decode"),
    ("kill", "engine", "decode"),
    ("kill", "predictor", "idle"),
}
"""What `make test` runs: each fault and each kind of process once."""


@dataclass(frozen=True)
class Cell:
    """One fault, once."""

    fault: Fault
    process: Process
    moment: Moment

    def __str__(self) -> str:
        return f"{self.fault}, {self.process}, {self.moment}"

    @property
    def is_short(self) -> bool:
        """Whether `make test` runs it."""
        return (self.fault, self.process, self.moment) in SHORT


def why_not(fault: Fault, process: Process) -> str:
    """The reason why there are no such cells; empty where there are."""
    if process in STAGES:
        return ""
    if fault == "cut link":
        return "it has no link: on one host its sockets are files (ipc)"
    if fault == "memory error":
        return "the kernel's OOM killer ends it: kill"
    if process == "torchrun" and fault != "kill":
        return "ended after 60 s without progress; an exception there ends it: kill"
    if process == "supervisor" and fault != "kill":
        return "no process waits for a stopped one; an exception there ends it: kill"
    return ""


def all_cells() -> list[Cell]:
    """In an order in which most share a daemon."""
    return [
        Cell(fault, process, moment)
        for process in PROCESSES
        for fault in FAULTS
        for moment in MOMENTS
        if not why_not(fault, process)
    ]
