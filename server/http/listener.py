"""The listener: binds the port before anything slow is loaded, and adds draining to uvicorn."""

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn
from starlette.types import ASGIApp

from daemon.host.binding import ListenError, bind, explain
from server.http.connection import WithConnection
from server.http.drain import Drain
from server.http.http_protocol import CHECK_INTERVAL_S, BoundedHttp

BACKLOG = 2048
KEEP_ALIVE_S = 75
TICKS_PER_CHECK = round(10 * CHECK_INTERVAL_S)
ERRORS_TIMEOUT_S = 2  # to send errors to requests that are still open when the drain ends
# Loggers with a line for each malformed request, which could fill the disk. The client gets a 400.
_VERBOSE_LOGGERS = ("uvicorn.error", "python_multipart")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger("tdpipe")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 means any free port. Raises `ListenError`."""
    listener = bind(host, port)
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ListenError(explain(error, host, port)) from error
    listener.setblocking(False)
    return listener


def url(host: str, port: int, *, tls: bool = False) -> str:
    """The server's URL."""
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


class DrainingServer(uvicorn.Server):
    """Serves until a signal, then lets open requests finish within `shutdown_timeout_s`.

    While draining, it still listens, so that new requests and probes are answered with 503. After
    the timeout, or immediately after a second signal, `fail_all` ends the requests that are still
    open with an error. If the daemon has a `failure` (one line for clients), this is done at once.
    The connection of a client that reads nothing for `send_timeout_s` is closed. What the
    `trusted_proxies` say about their clients is believed; None means uvicorn's default.
    """

    def __init__(
        self,
        app: ASGIApp,
        fail_all: Callable[[str], None],
        drain: Drain,
        *,
        shutdown_timeout_s: float,
        send_timeout_s: float = 60.0,
        trusted_proxies: str | None = None,
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
                access_log=False,  # replaced by the one in `server.http.middleware`
                forwarded_allow_ips=trusted_proxies,
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=ERRORS_TIMEOUT_S,
                ssl_context_factory=(lambda *_: tls) if tls else None,
            )
        )
        for name in _VERBOSE_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        self._fail_all = fail_all
        self._drain = drain
        self._failure = failure
        self._shutdown_timeout_s = shutdown_timeout_s
        self._send_timeout_s = send_timeout_s
        self._draining: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Begin to drain; the second call ends the server without waiting."""
        if self._draining is None:
            self._drain.begin()
            self._draining = asyncio.create_task(self._end(self._shutdown_timeout_s))
        else:
            self._draining.cancel()
            self._draining = asyncio.create_task(self._end(0))

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second: check for clients that do not read."""
        if counter % TICKS_PER_CHECK == 0:
            for connection in list(self.server_state.connections):
                assert isinstance(connection, BoundedHttp)
                connection.check_reads(self._send_timeout_s)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Replace uvicorn's signal handlers, which would stop listening at once."""
        loop = asyncio.get_running_loop()
        # Outside the main thread (tests) there are no signals to handle.
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
            self._fail_all(f"The server is shutting down.{because}")
            await self._drain.wait(ERRORS_TIMEOUT_S)
        self._drain.end()
        self.should_exit = True
