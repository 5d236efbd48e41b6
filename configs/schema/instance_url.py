"""URLs of instances, in one form: a daemon is known by its URL, and must not have two."""

import re
from urllib.parse import urlsplit, urlunsplit

_PLAIN = re.compile(r"[!-~]+")  # printable ASCII: the path goes into the head of a request
_PORTS = {"http": 80, "https": 443}


def checked_url(url: str) -> str:
    """The URL of a daemon in its usual form: without a usual port, and without `/v1` at its end.

    Raises `ValueError` for anything that is not the URL of an HTTP server.
    """
    shown = url if url.isprintable() else ascii(url)
    wrong = ValueError(f"{shown} is not like http://127.0.0.1:8000")
    if not _PLAIN.fullmatch(url):
        raise wrong
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:  # a port out of range, brackets that do not match, a label that is too long
        raise wrong from None
    usual_port = _PORTS.get(parts.scheme)
    if usual_port is None or not host or port == 0:
        raise wrong
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise wrong
    address = f"[{host}]" if ":" in host else host
    if port not in (None, usual_port):
        address = f"{address}:{port}"
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return urlunsplit((parts.scheme, address, path, "", ""))
