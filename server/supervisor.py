"""The supervisor: `tdpipe serve`. It starts, watches and ends the daemon's other processes.

    supervisor --+-- server    python -m server          HTTP
                 +-- engine    python -m engine          the scheduler
                 +-- stages    python -m workers         torchrun and one process per stage
                 +-- predictor python -m predictor       the encoder, where one predicts lengths

Nothing is orphaned: each child dies with its parent (`configs.lifeline`), and what the supervisor
stops it waits for. A failure that no restart can mend is left in the runtime folder by the process
that met it; its one line is the last the user reads.
"""

import fcntl
import json
import logging
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from configs import lifeline, loader, logs
from configs.schema import Config

POLL_INTERVAL_S = 0.05
STOP_TIMEOUT_S = 5.0

log = logging.getLogger("tdpipe")


def main(argv: Sequence[str]) -> int:
    """`tdpipe serve ARGV`: the exit code."""
    try:
        config = loader.load(argv)
    except loader.ConfigError as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)  # noqa: T201 - no log is set up yet
        return 2
    logs.set_up("tdpipe", config)
    changed = json.dumps(loader.non_default(config))
    log.info("tdpipe %s, settings that differ from the defaults: %s", _version(), changed)
    problem = check_model_path(config.model)
    if problem is not None:
        log.error("%s", problem)
        return 1
    folder = config.runtime_dir or Path(tempfile.mkdtemp(prefix="tdpipe-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return Supervisor(config.model_copy(update={"runtime_dir": folder})).run()
    except BlockingIOError:
        log.error("another daemon runs in %s (runtime_dir)", folder)
        return 1
    finally:
        if config.runtime_dir is None:
            shutil.rmtree(folder, ignore_errors=True)


def check_model_path(model: str) -> str | None:
    """Why `model` cannot be loaded, as far as a look at the path tells; a hub id passes."""
    path = Path(model)
    if path.is_dir():
        return None if (path / "config.json").is_file() else f"{model} holds no config.json"
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        return f"there is no folder {model}"
    return None


class _GivingUpError(Exception):
    """The daemon cannot go on; the text is the line for the user."""


class Supervisor:
    """One daemon, from start to end."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._folder = config.folder
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._restarts = 0
        self._predictor_restarts = 0
        self._signals = 0

    def run(self) -> int:
        """Start everything and watch it until a signal or a failure; the exit code."""
        (self._folder / lifeline.FAILURE).unlink(missing_ok=True)
        loader.save(self._config, self._folder)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take_signal)
        failure: str | None = None
        try:
            for name in ("server", "engine", "stages"):
                self._start(name)
            if self._config.predictor_folder is not None:
                self._start("predictor")
            while not self._signals:
                self._look()
                time.sleep(POLL_INTERVAL_S)
            self._drain()
        except _GivingUpError as error:
            failure = str(error)
        finally:
            self._stop(*self._children)
        if failure is None:
            log.info("stopped")
            return 0
        log.error("%s", failure)
        return 1

    def _take_signal(self, *_: object) -> None:
        self._signals += 1

    def _start(self, name: str) -> None:
        module = "workers" if name == "stages" else name
        self._children[name] = subprocess.Popen(
            # -P: a server.py or a configs folder where the user stands is not ours.
            [sys.executable, "-P", "-m", module, str(self._folder)],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            # Ctrl-C reaches the supervisor alone, which ends the others in order.
            start_new_session=True,
            env=lifeline.environment_of_children(self._config.num_threads),
        )

    def _look(self) -> None:
        """Restart what may be restarted; raises `_GivingUpError` for what may not."""
        failure = lifeline.reported_failure(self._folder)
        if failure is not None:
            raise _GivingUpError(failure)
        for name, child in list(self._children.items()):
            code = child.poll()
            if code is None:
                continue
            if name == "predictor" and lifeline.reported_failure(self._folder) is None:
                self._restart_predictor(code)
                continue
            # The child's own account may have come between the two looks.
            reason = lifeline.reported_failure(self._folder) or self._why_not_restart(name, code)
            if reason is not None:
                raise _GivingUpError(reason)
            self._restart(name, code)
            return

    def _why_not_restart(self, name: str, code: int) -> str | None:
        if name == "server":
            return f"the server {_how(code)}; its clients' connections are gone with it"
        if name == "stages" and code > 0:
            return f"the stages failed more than {self._config.max_restarts} times (max_restarts)"
        if self._restarts >= self._config.max_restarts:
            return f"the {name} {_how(code)}, after {self._restarts} restarts (max_restarts)"
        return None

    def _restart(self, name: str, code: int) -> None:
        """Stages hold plans of the engine that sent them: a new engine gets new stages."""
        log.error("the %s %s; restarting", name, _how(code))
        self._restarts += 1
        stale = ("engine", "stages") if name == "engine" else ("stages",)
        self._stop(*stale)
        for each in stale:
            self._start(each)

    def _restart_predictor(self, code: int) -> None:
        """Nobody's answer hangs on it: when it has died too often, the daemon goes on without."""
        del self._children["predictor"]
        if self._predictor_restarts >= self._config.max_restarts:
            log.error("the predictor %s; going on without it", _how(code))
            return
        log.error("the predictor %s; restarting", _how(code))
        self._predictor_restarts += 1
        self._start("predictor")

    def _drain(self) -> None:
        """Let the server finish what is open; a second signal ends it at once."""
        log.info("draining: open requests may finish for %g s", self._config.shutdown_timeout)
        server = self._children["server"]
        server.terminate()
        told, deadline = 1, time.monotonic() + self._config.shutdown_timeout + STOP_TIMEOUT_S
        while server.poll() is None and time.monotonic() < deadline:
            if self._signals > told:
                log.info("second signal: ending at once")
                server.terminate()
                told, deadline = self._signals, time.monotonic() + STOP_TIMEOUT_S
            for name in ("engine", "stages"):
                if self._children[name].poll() is not None:
                    log.error("the %s ended while draining", name)
                    return
            time.sleep(POLL_INTERVAL_S)

    def _stop(self, *names: str) -> None:
        """End children and wait for them: politely, then for good."""
        children = [self._children[name] for name in names]
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


def _how(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _version() -> str:
    try:
        return version("tdpipe")
    except PackageNotFoundError:
        return "(not installed)"
