"""The statuses of a daemon: one stream, and a thread that connects again when it ends."""

import threading
from collections.abc import Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Self

import msgspec

from client.terminal import DaemonError, RemoteDaemon
from wire.pipeline_status import PipelineStatus

PATH = "/pipeline/status"
# The daemon sends a status at least once a second.
SILENCE_S = 6.0
RETRY_S = 1.0


def statuses(daemon: RemoteDaemon) -> Iterator[PipelineStatus]:
    """Yield the statuses of one stream. Raises `DaemonError`, also at its end."""
    decoder = msgspec.json.Decoder(PipelineStatus)
    for line in daemon.lines(PATH, SILENCE_S):
        try:
            status = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise DaemonError(f"the daemon's status cannot be read: {error}") from error
        yield status


class Watcher:
    """Use it in a `with` statement. `arrivals` has statuses, and errors of the connection."""

    def __init__(self, daemon: RemoteDaemon) -> None:
        self.arrivals: SimpleQueue[PipelineStatus | DaemonError] = SimpleQueue()
        self._daemon = daemon
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(SILENCE_S)

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                for status in statuses(self._daemon):
                    self.arrivals.put(status)
                    if self._ended.is_set():
                        return
            except DaemonError as error:
                self.arrivals.put(error)
            self._ended.wait(RETRY_S)
