"""The files of a page for browsers, served without an API key: they contain no data.

A browser cannot send a key when it opens a page. So the page itself asks for the key, and sends it
with its requests for data.
"""

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

# The page may load nothing from elsewhere, run no inline script, and be in no frame. A style
# attribute that a script sets through the DOM is not inline in this sense.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'self'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
# The page is written for this prefix of its links, which is relative to the page's own address.
_BASE = b'<base href="./">'

_SHARED = ("page.css", "stream.js")
_UPLOT = ("uplot/uPlot.iife.min.js", "uplot/uPlot.min.css")


def _below_page(*names: str) -> dict[str, str]:
    return {f"page/{name}": name for name in names}


DAEMON = {
    "": "daemon.html",
    **_below_page(*_SHARED, *_UPLOT, "daemon.js", "charts.js", "timeline.js"),
}
ROUTER = {"": "router.html", **_below_page(*_SHARED, "router.js")}
"""The files of each page by the paths below the root at which they are served."""


def paths(names: Mapping[str, str]) -> tuple[str, ...]:
    """The paths at which the files are served."""
    return tuple(f"/{path}" for path in names)


def routes(names: Mapping[str, str], root_path: str = "") -> list[Route]:
    """A route for each file. With a root path, links begin with it: a proxy may drop a slash."""
    base = f'<base href="{root_path}/">'.encode()
    return [
        Route(f"/{path}", _File(name, base).answer, include_in_schema=False)
        for path, name in names.items()
    ]


class _File:
    """One file, which is read once."""

    def __init__(self, name: str, base: bytes) -> None:
        content = (files("server.page") / "static" / name).read_bytes()
        if base != b'<base href="/">':
            content = content.replace(_BASE, base)
        self._content = content
        self._headers = {
            **_HEADERS,
            "content-type": f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8",
            "etag": f'"{hashlib.sha256(content).hexdigest()[:16]}"',
        }

    async def answer(self, request: Request) -> Response:
        """The file, or 304 if the browser has it."""
        if request.headers.get("if-none-match") == self._headers["etag"]:
            return Response(status_code=304, headers=self._headers)
        return Response(self._content, headers=self._headers)
