"""The listener: the port, taken before anything slow is loaded, and a uvicorn that drains."""

import asyncio
import errno
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from server.http.drain import Drain
from server.http.http_protocol import LOOK_S, BoundedHttp
from server.openai.rendering.direct_writer import WithConnection
from server.requests.engine_client import EngineClient

BACKLOG = 2048
KEEP_ALIVE_S = 75
TICKS_PER_LOOK = round(10 * LOOK_S)
LAST_WORDS_S = 2  # for the error events of requests that the drain's end has cut off
# These tell of every malformed request, for which the client hears a 400: they could fill a disk.
_LOUD = ("uvicorn.error", "python_multipart")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger("tdpipe")


class ListenError(Exception):
    """The address cannot be listened on; the text is one line for the user."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 finds a free one. Raises `ListenError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {host}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(_explain(error, host, port)) from error
    listener.setblocking(False)
    return listener


def url(host: str, port: int, *, tls: bool = False) -> str:
    """Where a browser finds the server."""
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """Serves until a signal, then lets open requests finish within `shutdown_timeout_s`.

    While it drains it still listens, so that clients and probes get an answer: 503. A second
    signal ends it at once; either way, requests still open get an error before it goes. So they do
    without delay where there is a `failure`: the daemon's, in words for the client. A client that
    reads nothing for `send_timeout_s` is hung up on.
    """

    def __init__(
        self,
        app: ASGIApp,
        client: EngineClient,
        drain: Drain,
        *,
        shutdown_timeout_s: float,
        send_timeout_s: float = 60.0,
        tls: ssl.SSLContext | None = None,
        failure: Callable[[], str | None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                WithConnection(app),
                http=BoundedHttp,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,  # ours is in `server.http.access`
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=LAST_WORDS_S,
                ssl_context_factory=(lambda *_: tls) if tls else None,
            )
        )
        for name in _LOUD:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = client
        self._drain = drain
        self._failure = failure
        self._shutdown_timeout_s = shutdown_timeout_s
        self._send_timeout_s = send_timeout_s
        self._draining: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Begin to drain; called once more, end at once."""
        if self._draining is None:
            self._drain.begin()
            self._draining = asyncio.create_task(self._end(self._shutdown_timeout_s))
        else:
            self._draining.cancel()
            self._draining = asyncio.create_task(self._end(0))

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second: look now and then after clients that do not read."""
        if counter % TICKS_PER_LOOK == 0:
            for connection in list(self.server_state.connections):
                assert isinstance(connection, BoundedHttp)
                connection.check_reads(self._send_timeout_s)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals in the place of uvicorn, which would stop listening at once."""
        loop = asyncio.get_running_loop()
        # Not the main thread (tests): there are no signals to take.
        with suppress(ValueError, RuntimeError):
            for number in _SIGNALS:
                loop.add_signal_handler(number, self.stop)
        yield
        for number in _SIGNALS:
            with suppress(ValueError, RuntimeError):
                loop.remove_signal_handler(number)

    async def _end(self, timeout_s: float) -> None:
        logger.info("shutting down: %d requests are open", self._drain.num_open)
        failure = self._failure()
        if failure is not None or not await self._drain.wait(timeout_s):
            because = f" It has failed: {failure}" if failure else ""
            self._client.fail_all(f"The server is shutting down.{because}")
            await self._drain.wait(LAST_WORDS_S)
        self.should_exit = True


def _explain(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is already in use"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has"
    return f"cannot listen on {host}:{port}: {error.strerror}"
