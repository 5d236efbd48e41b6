"""The access: every request has an id, which its answer bears, and a line in the log.

All that answers is behind it, so that this holds for refusals and for bugs too. A streamed chunk
costs it one call.
"""

import logging
import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.logs import fields
from server.http.errors import CLIENT_CLOSED_REQUEST, failed

HEADER = b"x-request-id"
# Of a client's id nothing is kept that could break a header or forge a line of the log.
_FIT = re.compile(rb"[!-~]{1,128}")
QUIET_PATHS = frozenset({"/health", "/ready", "/metrics"})
MAX_LOGGED_PATH = 200

logger = logging.getLogger("tdpipe.access")


class Access:
    """ASGI middleware. The id is in the scope's state as `request_id`."""

    def __init__(self, app: ASGIApp, *, root_path: str, access_log: bool) -> None:
        self._app = app
        self._quiet_paths = {root_path + path for path in QUIET_PATHS}
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request through, and answer where nobody else has."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_at = time.monotonic()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (HEADER, request_id.encode())
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self._app(_with_get_for_head(scope), receive, send_named)
        except Exception:
            if not status:
                response = failed("The server had an error while processing your request.")
                await response.response()(scope, receive, send_named)
            raise  # the edge is uvicorn's, which logs it
        finally:
            if self._access_log and scope["path"] not in self._quiet_paths:
                self._log(scope, status or CLIENT_CLOSED_REQUEST, began_at)

    def _log(self, scope: Scope, status: int, began_at: float) -> None:
        path = scope.get("raw_path", b"")[:MAX_LOGGED_PATH].decode("ascii", "backslashreplace")
        seconds = round(time.monotonic() - began_at, 6)
        method, request_id = scope["method"], scope["state"]["request_id"]
        logger.info(
            "%s %s %d %.3fs %s",
            method,
            path,
            status,
            seconds,
            request_id,
            extra=fields(
                method=method, path=path, status=status, seconds=seconds, request_id=request_id
            ),
        )


def _request_id(scope: Scope) -> str:
    """The client's own, if it is fit, or a fresh one."""
    for name, value in scope["headers"]:
        if name == HEADER and _FIT.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex


def _with_get_for_head(scope: Scope) -> Scope:
    """HEAD is GET without a body, and uvicorn, which has the scope, leaves the body out."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
