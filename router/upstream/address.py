"""The address of a daemon, and the heads of requests to it."""

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

Header = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens; `path` is the prefix of its API."""

    host: str
    port: int
    is_secure: bool
    path: str
    headers: tuple[Header, ...] = ()

    @classmethod
    def of(cls, url: str, api_key: str | None = None) -> "Address":
        """The address that a URL names; requests get the API key. Raises `ValueError`."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not like http://127.0.0.1:8000")
        is_secure = parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        headers = [(b"host", f"{host}:{port}".encode())]
        if api_key:
            headers.append((b"authorization", b"Bearer " + api_key.encode()))
        return cls(parts.hostname, port, is_secure, parts.path.rstrip("/"), tuple(headers))

    def get(self, target: bytes, headers: Iterable[Header] = ()) -> bytes:
        """The bytes of a GET request; `target` is a path, perhaps with a query."""
        return self._head(b"GET", target, headers) + b"\r\n"

    def post(self, target: bytes, body: bytes, headers: Iterable[Header] = ()) -> bytes:
        """The bytes of a POST request."""
        length = b"content-length: %d\r\n\r\n" % len(body)
        return self._head(b"POST", target, headers) + length + body

    def _head(self, method: bytes, target: bytes, headers: Iterable[Header]) -> bytes:
        lines = [b"%b %b%b HTTP/1.1\r\n" % (method, self.path.encode(), target)]
        lines += [b"%b: %b\r\n" % header for header in (*self.headers, *headers)]
        return b"".join(lines)


def client_tls(ca_certs: Path | None) -> ssl.SSLContext:
    """How https:// daemons are verified. Raises `OSError` if the CA certificates are unusable."""
    return ssl.create_default_context(cafile=str(ca_certs) if ca_certs else None)
