"""A daemon for one client: it serves on a Unix socket, and ends with the client."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from client.terminal import DaemonError, RemoteDaemon
from daemon.processes import child_process
from daemon.runtime_folder import temporary_folder

POLL_INTERVAL_S = 0.1
# As long as a daemon drains, and some.
END_TIMEOUT_S = 60.0


@contextmanager
def own_daemon(arguments: Sequence[str]) -> Iterator[Path]:
    """Run `tdpipe serve ARGUMENTS` during a `with` block; yields its socket once it is ready.

    Until then, its log is printed. Raises `DaemonError` if it cannot start.
    """
    with temporary_folder() as folder:
        socket, log = folder / "http.sock", folder / "log"
        with log.open("wb") as written:
            daemon = subprocess.Popen(
                [sys.executable, "-P", "-m", "daemon", *arguments, "--uds", str(socket)],
                stdin=subprocess.DEVNULL,
                stdout=written,
                stderr=written,
                start_new_session=True,  # Ctrl-C ends an answer, and not the daemon
                env=_environment(),
            )
        try:
            with log.open(errors="replace") as lines:
                _wait_ready(daemon, socket, lines)
            yield socket
        finally:
            daemon.terminate()
            try:
                daemon.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _environment() -> dict[str, str]:
    """That of this process, settings too, and what ties the daemon to it."""
    ours = child_process.environment_of_children(None)
    return {**os.environ, **{key: ours[key] for key in ("PYTHONPATH", child_process.PARENT)}}


def _wait_ready(daemon: "subprocess.Popen[bytes]", socket: Path, log: TextIO) -> None:
    with RemoteDaemon("http://localhost", uds=str(socket)) as remote:
        while not remote.is_ready():
            has_ended = daemon.poll() is not None
            sys.stderr.write(log.read())
            if has_ended:
                raise DaemonError("the daemon could not start")
            time.sleep(POLL_INTERVAL_S)
