"""The supervisor (`tdpipe serve`) starts, watches and ends the other processes of the daemon.

    supervisor --+-- server    python -m server          HTTP
                 +-- engine    python -m engine          the scheduler
                 +-- stages    python -m workers         torchrun and one process per stage
                 +-- predictor python -m predictor       the encoder, if one is configured

`daemon.restarts` restarts those that die. If the daemon fails, the last line that it prints is the
root cause.
"""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence

from configs import loader
from configs.config import Config
from daemon.checkpoint.resolution import resolve
from daemon.host import resource_limits
from daemon.host.meeting_point import check_node
from daemon.observability import log_file, logs
from daemon.processes import child_process
from daemon.restarts import POLL_INTERVAL_S, STOP_TIMEOUT_S, Children, GivingUpError
from daemon.runtime_folder import runtime_folder
from daemon.start_checks import check_start
from daemon.start_error import StartError
from daemon.version import VERSION

log = logging.getLogger("tdpipe")


def main(argv: Sequence[str]) -> int:
    """Run `tdpipe serve ARGV`; returns the exit code."""
    try:
        config = loader.load(argv, version=VERSION)
    except loader.ConfigError as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)  # noqa: T201 - no log is set up yet
        return 2
    try:
        terminal = log_file.begin(config.logs.log_file) if config.logs.log_file else None
    except log_file.LogFileError as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)  # noqa: T201 - as above
        return 2
    logs.set_up("tdpipe", config.logs, terminal)
    changed = json.dumps(loader.non_default(config))
    log.info("tdpipe %s, settings that differ from the defaults: %s", VERSION, changed)
    resource_limits.raise_open_files()
    for shortage in resource_limits.shortages(config):
        log.warning("%s", shortage)
    try:
        check_start(config)
        check_node(config)
        resolved = _resolve(config)
        if resolved is None:
            return 0
        with runtime_folder(resolved) as placed:
            return Supervisor(placed).run()
    except StartError as error:
        log.error("%s", error)
        return 1


def _resolve(config: Config) -> Config | None:
    """See `checkpoint.resolve`; None if a signal ended it. Raises `StartError`."""
    stop = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: stop.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        resolved = resolve(config, stop)
    except StartError:
        if not stop.is_set():
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if stop.is_set():
        log.info("stopped")
        return None
    return resolved


class Supervisor:
    """Runs one daemon from start to end."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._children = Children(
            config.pipeline,
            config.predictor,
            config.runtime.folder,
            ("stages",) if config.nodes.headless else ("server", "engine", "stages"),
        )
        self._signals = 0

    def run(self) -> int:
        """Start everything and watch it until a signal or a failure; returns the exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take_signal)
        # SIGHUP reopens a log file (`daemon.observability.log_file`), and nohup's ignored SIGHUP
        # stays ignored.
        if not self._config.logs.log_file and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._take_signal)
        failure: str | None = None
        try:
            self._children.start()
            while not self._signals:
                self._children.look()
                time.sleep(POLL_INTERVAL_S)
            self._drain()
        except GivingUpError as error:
            failure = str(error)
            # The server sends the failure to all clients with an open request.
            child_process.report_failure(self._config.runtime.folder, failure)
        finally:
            self._children.stop()
        if failure is None:
            log.info("stopped")
            return 0
        log.error("%s", failure)
        return 1

    def _take_signal(self, number: int, _: object) -> None:
        # If a terminal is closed, kernel and shell may both send SIGHUP; only the first one counts.
        if number != signal.SIGHUP or not self._signals:
            self._signals += 1

    def _drain(self) -> None:
        """Let the server finish its open requests; a second signal ends it immediately."""
        if self._config.nodes.headless:
            return
        log.info(
            "draining: open requests may finish for %g s",
            self._config.server.connections.shutdown_timeout,
        )
        server = self._children.process("server")
        server.terminate()
        num_forwarded, deadline = (
            1,
            time.monotonic() + self._config.server.connections.shutdown_timeout + STOP_TIMEOUT_S,
        )
        while server.poll() is None and time.monotonic() < deadline:
            if self._signals > num_forwarded:
                log.info("second signal: ending at once")
                server.terminate()
                num_forwarded, deadline = self._signals, time.monotonic() + STOP_TIMEOUT_S
            self._children.look(ending="server")
            time.sleep(POLL_INTERVAL_S)
