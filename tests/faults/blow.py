"""The blow: how each fault is inflicted on each process, and when."""

import os
import signal
import time
from collections.abc import Callable

import psutil

from tests.end_to_end.daemon import Daemon
from tests.faults.cells import STAGES, Fault, Process
from tests.faults.checkpoint import Levers
from tests.faults.cut import cut

Struck = Callable[[], float]
"""The time, by the monotonic clock; read once its consequences are there."""

# An exception that no code expects, wherever the process is. The server takes SIGINT as a request
# to end: there it is a library's abort().
RAISE = {"engine": signal.SIGINT, "predictor": signal.SIGINT, "server": signal.SIGABRT}


def deal(fault: Fault, process: Process, daemon: Daemon, levers: Levers) -> Struck:
    """Inflict it now, or with the stage's next forward."""
    at = time.monotonic()
    if process in STAGES and fault in ("raise", "memory error"):
        levers.pull(STAGES.index(process), fault)
        return levers.pulled_at
    if fault == "cut link":
        stages = stages_of(daemon)
        here = STAGES.index(process)
        neighbours = [stage for stage in (here - 1, here + 1) if stage in stages]
        assert all(cut(stages[here], stages[there]) for there in neighbours), "no link to cut"
    else:
        signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
        os.kill(pid_of(process, daemon), signals.get(fault) or RAISE[process])
    return lambda: at


def stages_of(daemon: Daemon) -> dict[int, psutil.Process]:
    """The stages' processes by number, as the daemon itself names them."""
    return {stage["stage"]: psutil.Process(stage["pid"]) for stage in daemon.health()["stages"]}


def pid_of(process: Process, daemon: Daemon) -> int:
    """The present process of this name."""
    if process in STAGES:
        return stages_of(daemon)[STAGES.index(process)].pid
    if process == "supervisor":
        return daemon.process.pid
    return daemon.descendants()[process][0].pid
