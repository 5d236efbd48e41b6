"""Restarts: starts the daemon's processes, restarts those that die or hang, and ends them.

This module restarts the engine, torchrun and the predictor, but never the server. A stage that dies
is restarted by torchrun (`workers.stage_restarts`), together with all other stages.

No process is orphaned: each child dies with its parent (`daemon.processes.child_process`), and the
parent waits for stopped children. A child that hangs is killed (`daemon.processes.watchdog_file`)
and then handled like a child that died. If a process fails in a way that no restart can fix, it
writes the failure to the runtime folder, and the daemon ends.
"""

import logging
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from configs.schema.pipeline import PipelineConfig
from configs.schema.scheduler import PredictorConfig
from daemon.processes import child_process
from daemon.processes.cpu_waits import CpuWaits
from daemon.processes.oom_kills import OomKills
from daemon.processes.process_exits import TORCHRUN, ExitFile, ProcessExit, describe
from daemon.processes.watchdog_file import Watchdog
from daemon.restart_limit import RestartLimit

POLL_INTERVAL_S = 0.05
STOP_TIMEOUT_S = 5.0
# Seconds without a beat after which a process is killed; for the engine, `heartbeat_timeout`. These
# are longer: the server parses large requests, the predictor has the lowest CPU priority, and
# torchrun waits for the stages that it ends.
PATIENCE_S = {"server": 10.0, "predictor": 30.0, "stages": 60.0}

Name = Literal["server", "engine", "stages", "predictor"]
# Names that differ between the log and the code.
_NAMES = {"stages": "stages' torchrun"}

log = logging.getLogger("tdpipe")


class GivingUpError(Exception):
    """The daemon cannot continue; the message is one line for the user."""


class Children:
    """The processes of one runtime folder, which is locked and holds the settings.

    The thread that starts and restarts them must live as long as they do, because Linux ends a
    child together with the thread that started it.
    """

    def __init__(
        self,
        pipeline: PipelineConfig,
        predictor: PredictorConfig,
        folder: Path,
        names: Sequence[Name],
    ) -> None:
        self._config, self._folder = pipeline, folder
        self._names = [*names]
        if predictor.predictor_folder is not None and "server" in names:  # which asks it
            self._names.append("predictor")
        self._processes: dict[Name, subprocess.Popen[bytes]] = {}
        self._watchdogs: dict[Name, Watchdog] = {}
        self._num_incarnations: Counter[Name] = Counter()
        self._restarts = RestartLimit(pipeline)
        self._predictor_restarts = RestartLimit(pipeline)
        self._exits, self._oom_kills = ExitFile(folder), OomKills()

    def start(self) -> None:
        """Start all processes without waiting for them."""
        for name in self._names:
            self._start(name)

    def process(self, name: Name) -> "subprocess.Popen[bytes]":
        """The current process with this name."""
        return self._processes[name]

    def look(self, *, ending: Name | None = None) -> None:
        """Restart processes that ended; raises `GivingUpError` if one must not be restarted.

        Call this every `POLL_INTERVAL_S` seconds. The process `ending` is ignored.
        """
        failure = child_process.reported_failure(self._folder)
        if failure is not None:
            raise GivingUpError(failure)
        self._oom_kills.refresh()
        for name, child in list(self._processes.items()):
            if name == ending:
                continue
            self._check_watchdog(name)
            code = child.poll()
            if code is None:
                continue
            if name == "predictor" and child_process.reported_failure(self._folder) is None:
                self._restart_predictor(code)
                continue
            # The child may have reported its failure between the two checks.
            cause = child_process.reported_failure(self._folder)
            reason = cause or self._why_not_restart(name, code)
            if reason is not None:
                raise GivingUpError(reason)
            self._restart(name, code)
            return

    def stop(self, *names: Name) -> None:
        """End these processes, or all, by SIGTERM and then by SIGKILL, and wait for them."""
        children = [self._processes[name] for name in names or self._processes]
        for child in children:
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in children:
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _check_watchdog(self, name: Name) -> None:
        still_s = self._watchdogs[name].look()
        if still_s:
            message = "the %s has not responded for %.1f s; killing it"
            log.error(message, _NAMES.get(name, name), still_s)
            self._processes[name].kill()
            self._processes[name].wait()

    def _start(self, name: Name) -> None:
        silence_s = PATIENCE_S.get(name, self._config.heartbeat_timeout)
        cpu_waits = CpuWaits()
        self._watchdogs[name] = Watchdog(
            self._folder,
            name,
            POLL_INTERVAL_S,
            silence_s,
            self._config.stage_start_timeout,
            lambda: cpu_waits.are_starved([self._processes[name].pid]),
        )
        module = "workers" if name == "stages" else name
        arguments = [str(self._folder)]
        if name != "server":  # the server is never restarted
            arguments.append(str(self._num_incarnations[name]))
            self._num_incarnations[name] += 1
        self._processes[name] = child_process.start(
            module, *arguments, num_threads=self._config.num_threads
        )

    def _why_not_restart(self, name: Name, code: int) -> str | None:
        if name == "server":
            return (
                f"the server {self._how(code)} and is not restarted, because its connections are "
                "lost; the daemon stops"
            )
        if self._restarts.are_used_up():
            return f"the {_NAMES.get(name, name)} {self._how(code)}; {self._restarts}"
        return None

    def _restart(self, name: Name, code: int) -> None:
        """Restart one process; stages keep running if the engine restarts, and vice versa."""
        if name == "stages":
            # The stages die with it, so this is the cause that the engine looks for.
            pid = self._processes[name].pid
            self._exits.append(ProcessExit(TORCHRUN, pid, code, self._is_oom(code)))
        log.error("the %s %s; restarting", _NAMES.get(name, name), self._how(code))
        self._restarts.count()
        self._start(name)

    def _restart_predictor(self, code: int) -> None:
        """Restart the predictor, or continue without it after too many restarts: it is optional."""
        del self._processes["predictor"]
        if self._predictor_restarts.are_used_up():
            message = "the predictor %s; %s; continuing without it"
            log.error(message, self._how(code), self._predictor_restarts)
            return
        log.error("the predictor %s; restarting", self._how(code))
        self._predictor_restarts.count()
        self._start("predictor")

    def _how(self, code: int) -> str:
        return describe(code, is_oom=self._is_oom(code))

    def _is_oom(self, code: int) -> bool:
        return code == -signal.SIGKILL and self._oom_kills.are_recent()
