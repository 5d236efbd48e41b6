"""The children: a daemon's processes, started, restarted while that can help, and ended.

Nothing is orphaned: each child dies with its parent (`configs.lifeline`), and what is stopped is
waited for. A failure that no restart can mend is left in the runtime folder by the process that met
it, and ends all.
"""

import logging
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Literal

from configs import lifeline
from configs.schema import Config

POLL_INTERVAL_S = 0.05
STOP_TIMEOUT_S = 5.0

Name = Literal["server", "engine", "stages", "predictor"]

log = logging.getLogger("tdpipe")


class GivingUpError(Exception):
    """The processes cannot go on; the text is one line for the user."""


class Children:
    """The processes of one runtime folder, which is locked and holds `config`.

    Start and restart them from a thread that lives as long as they shall: Linux ends a child with
    the thread that has started it.
    """

    def __init__(self, config: Config, names: Sequence[Name]) -> None:
        self._config = config
        self._names = [*names]
        if config.predictor_folder is not None:
            self._names.append("predictor")
        self._processes: dict[Name, subprocess.Popen[bytes]] = {}
        self._restarts = 0
        self._predictor_restarts = 0

    def start(self) -> None:
        """Start all, without waiting for anything."""
        for name in self._names:
            self._start(name)

    def process(self, name: Name) -> "subprocess.Popen[bytes]":
        """The present process of this name."""
        return self._processes[name]

    def look(self) -> None:
        """Restart what may be restarted; raises `GivingUpError` for what may not."""
        failure = lifeline.reported_failure(self._config.folder)
        if failure is not None:
            raise GivingUpError(failure)
        for name, child in list(self._processes.items()):
            code = child.poll()
            if code is None:
                continue
            if name == "predictor" and lifeline.reported_failure(self._config.folder) is None:
                self._restart_predictor(code)
                continue
            # The child's own account may have come between the two looks.
            told = lifeline.reported_failure(self._config.folder)
            reason = told or self._why_not_restart(name, code)
            if reason is not None:
                raise GivingUpError(reason)
            self._restart(name, code)
            return

    def stop(self, *names: Name) -> None:
        """End these, or all, and wait for them: politely, then for good."""
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

    def _start(self, name: Name) -> None:
        module = "workers" if name == "stages" else name
        self._processes[name] = lifeline.start(
            module, str(self._config.folder), num_threads=self._config.num_threads
        )

    def _why_not_restart(self, name: Name, code: int) -> str | None:
        if name == "server":
            return f"the server {_how(code)}; its clients' connections are gone with it"
        if name == "stages" and code > 0:
            return f"the stages failed more than {self._config.max_restarts} times (max_restarts)"
        if self._restarts >= self._config.max_restarts:
            return f"the {name} {_how(code)}, after {self._restarts} restarts (max_restarts)"
        return None

    def _restart(self, name: Name, code: int) -> None:
        """Stages hold plans of the engine that sent them: a new engine gets new stages."""
        log.error("the %s %s; restarting", name, _how(code))
        self._restarts += 1
        stale: tuple[Name, ...] = ("engine", "stages") if name == "engine" else ("stages",)
        self.stop(*stale)
        for each in stale:
            self._start(each)

    def _restart_predictor(self, code: int) -> None:
        """Nobody's answer hangs on it: when it has died too often, the daemon goes on without."""
        del self._processes["predictor"]
        if self._predictor_restarts >= self._config.max_restarts:
            log.error("the predictor %s; going on without it", _how(code))
            return
        log.error("the predictor %s; restarting", _how(code))
        self._predictor_restarts += 1
        self._start("predictor")


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
