"""One HTTP exchange over its own connection, implemented with asyncio and httptools.

The client often shares the machine with the server, so its work per streamed piece counts: 14 us
of CPU with uvloop, 37 us with asyncio's own loop; httpx takes 115 us (50 streams of 200 pieces
each).
"""

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import urlsplit

import httptools

# Takes the status and a part of the body.
Take = Callable[[int, bytes], None]

FETCH_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens, and what each request to it carries.

    `uds` is a Unix socket that is used instead of host and port. `headers` may contain a key, so
    they are not part of the representation.
    """

    host: str
    port: int
    is_secure: bool = False
    path: str = ""
    uds: str | None = None
    is_verified: bool = True
    headers: tuple[str, ...] = field(default=(), repr=False)

    @classmethod
    def of(cls, url: str) -> "Address":
        """The address that a URL names. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not like http://127.0.0.1:8000")
        is_secure = parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
        # Users give either the server's root or an OpenAI client's base URL.
        path = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port, is_secure, path)

    def __str__(self) -> str:
        scheme = "https" if self.is_secure else "http"
        return f"{scheme}://{self._host}:{self.port}{self.path}"

    def get(self, path: str) -> bytes:
        """The bytes of a GET request."""
        return self._head("GET", path) + b"\r\n"

    def post(self, path: str, body: bytes) -> bytes:
        """The bytes of a POST request with a JSON body."""
        length = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        return self._head("POST", path) + length + body

    def _head(self, method: str, path: str) -> bytes:
        lines = (f"{method} {self.path}{path} HTTP/1.1", f"host: {self._host}:{self.port}")
        return "\r\n".join((*lines, "connection: close", *self.headers, "")).encode()

    @property
    def _host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


async def exchange(address: Address, request: bytes, take: Take) -> int:
    """Send `request`, pass every part of the answer's body to `take`, and return the status.

    Raises OSError if the connection fails or breaks before the answer is complete.
    """
    transport, connection = await _connect(address, take)
    try:
        transport.write(request)
        return await connection.answered
    finally:
        transport.abort()


async def fetch(address: Address, path: str) -> tuple[int, bytes]:
    """The status and the body of a GET. Raises OSError, also if it takes too long."""
    body = bytearray()
    async with asyncio.timeout(FETCH_TIMEOUT_S):
        status = await exchange(address, address.get(path), lambda _, data: body.extend(data))
    return status, bytes(body)


async def _connect(address: Address, take: Take) -> "tuple[asyncio.Transport, _Connection]":
    loop = asyncio.get_running_loop()
    context = _tls_context(address.is_verified) if address.is_secure else None
    if address.uds is not None:
        return await loop.create_unix_connection(
            lambda: _Connection(take),
            address.uds,
            ssl=context,
            server_hostname=address.host if context else None,
        )
    return await loop.create_connection(
        lambda: _Connection(take), address.host, address.port, ssl=context
    )


@lru_cache
def _tls_context(is_verified: bool) -> ssl.SSLContext:
    """One for all connections: loading the certificates of the system takes milliseconds."""
    context = ssl.create_default_context()
    if not is_verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class _Connection(asyncio.Protocol):
    """Parses one response; the callbacks without a docstring are httptools'."""

    def __init__(self, take: Take) -> None:
        self.answered: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._take = take
        self._status = 0
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse a part of the answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"not an HTTP answer: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side has closed the connection, too early unless the answer is complete."""
        self._fail(str(exc) if exc else "the connection was closed before the answer's end")

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._take(self._status, body)

    def on_message_complete(self) -> None:
        if not self.answered.done():
            self.answered.set_result(self._status)

    def _fail(self, reason: str) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError(reason))
