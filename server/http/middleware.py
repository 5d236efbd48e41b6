"""The middleware: request ids, access log, CORS and API keys, in the order a request passes them.

It wraps the FastAPI application, so that FastAPI's own error responses pass through it too.
"""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.schema.server import AccessConfig
from daemon.observability.logs import fields
from server.http.connection import connection_of
from server.http.errors import CLIENT_CLOSED_REQUEST, ApiError, failed, invalid
from server.http.refusal_log import STATUSES, RefusalLog
from server.http.request_record import RequestRecord, begin_record

HEADER = b"x-request-id"
ALWAYS_OPEN = ("/health", "/live", "/ready")
QUIET_PATHS = frozenset({*ALWAYS_OPEN, "/metrics"})
MAX_LOGGED_PATH, MAX_LOGGED_HOST = 200, 64
# A client's id is used only if it can neither break a header nor forge a log line.
_VALID_ID = re.compile(rb"[!-~]{1,128}")

logger = logging.getLogger("tdpipe.access")


def with_middleware(
    app: ASGIApp,
    config: AccessConfig,
    *,
    root_path: str,
    access_log: bool,
    open_paths: Iterable[str] = (),
) -> ASGIApp:
    """The app, wrapped in the middleware that the settings require.

    The `open_paths` need no API key, like those of the settings.
    """
    if config.api_key:
        all_open = (*config.open_paths, *open_paths)
        app = ApiKeys(app, config.api_key, open_paths=all_open, root_path=root_path)
    if config.allowed_origins:
        app = Cors(
            app,
            allow_origins=config.allowed_origins,
            allow_methods=config.allowed_methods,
            allow_headers=config.allowed_headers,
            allow_credentials=config.allow_credentials,
            expose_headers=[HEADER.decode(), "traceresponse"],
        )
    app = Access(app, root_path=root_path, access_log=access_log)
    return RootPath(app, root_path) if root_path else app


class RootPath:
    """ASGI middleware for the path prefix of a reverse proxy, whether the proxy strips it or not.

    It makes `path` begin with `root_path`, as the ASGI specification requires. The prefix alone is
    the page at `/`.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app with the complete path."""
        if scope["type"] == "http":
            scope["root_path"] = self._root_path
            if not f"{scope['path']}/".startswith(f"{self._root_path}/"):
                scope["path"] = self._root_path + scope["path"]
            elif scope["path"] == self._root_path:
                scope["path"] += "/"
        await self._app(scope, receive, send)


class Access:
    """ASGI middleware that gives every response a request id, and logs every request.

    The id is in the scope's state as `request_id`, beside the `RequestRecord` that the routes fill.
    Refusals are summed up. The overhead is one extra call per chunk.
    """

    def __init__(self, app: ASGIApp, *, root_path: str, access_log: bool) -> None:
        self._app = app
        self._quiet_paths = {root_path + path for path in QUIET_PATHS}
        self._access_log = access_log
        self._refusals = RefusalLog(_call_later)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; answer 500 if it fails before its response has begun."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began_at = time.monotonic()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        record, status = begin_record(scope), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = ((HEADER, request_id.encode()), *record.headers)
                message = {**message, "headers": [*message.get("headers", ()), *own]}
            await send(message)

        try:
            await self._app(_with_get_for_head(scope), receive, send_with_id)
        except Exception:
            if not status:
                response = failed("The server had an error while processing your request.")
                await response.response()(scope, receive, send_with_id)
            raise  # uvicorn logs it
        finally:
            self._end(scope, record, status, began_at)

    def _end(self, scope: Scope, record: RequestRecord, status: int, began_at: float) -> None:
        """Log a request that has ended, and tell its trace.

        The status of a response that has begun tells nothing about its end: a client that has left
        before it counts as 499 too.
        """
        connection = connection_of(scope)
        has_left = connection is not None and connection.is_disconnected
        status = CLIENT_CLOSED_REQUEST if has_left else status or CLIENT_CLOSED_REQUEST
        if status == CLIENT_CLOSED_REQUEST:
            record.outcome = "disconnect"
        record.on_end(status, record.outcome or ("success" if status < 400 else "error"))
        if not self._access_log or scope["path"] in self._quiet_paths:
            return
        if status not in STATUSES or self._refusals.add(record.reason):
            _log(scope, record, status, time.monotonic() - began_at, began_at)


def _log(scope: Scope, record: RequestRecord, status: int, seconds: float, began_at: float) -> None:
    path = scope.get("raw_path", b"")[:MAX_LOGGED_PATH].decode("ascii", "backslashreplace")
    facts = _facts(record, status, began_at)
    method, client, request_id = scope["method"], _client(scope), scope["state"]["request_id"]
    logger.info(
        "%s %s %s %d %.3fs %s%s",
        client,
        method,
        path,
        status,
        seconds,
        "".join(f"{name}={value} " for name, value in facts.items()),
        request_id,
        extra=fields(
            client=client,
            method=method,
            path=path,
            status=status,
            seconds=round(seconds, 6),
            request_id=request_id,
            **facts,
        ),
    )


def _facts(record: RequestRecord, status: int, began_at: float) -> dict[str, str | int | float]:
    """What the route has told about the request."""
    facts: dict[str, str | int | float] = {}
    if record.num_prompt_tokens is not None:
        facts["prompt_tokens"] = record.num_prompt_tokens
    if record.num_output_tokens is not None:
        facts["output_tokens"] = record.num_output_tokens
    if record.first_token_at is not None:
        facts["ttft_s"] = round(record.first_token_at - began_at, 3)
    if record.reason:
        facts["reason"] = record.reason
    if record.outcome and (status < 400 or status == CLIENT_CLOSED_REQUEST):
        facts["outcome"] = record.outcome  # that of other errors is told by their status
    if record.trace_id:
        facts["trace_id"] = record.trace_id
    return facts


def _client(scope: Scope) -> str:
    """The client's address: the connection's, or what a trusted proxy says it is."""
    host, port = scope.get("client") or ("unix", 0)
    # A proxy may pass on whatever the client wrote.
    host = host[:MAX_LOGGED_HOST].encode("ascii", "backslashreplace").decode()
    host = "".join(c if c.isprintable() and c != " " else "?" for c in host)
    host = f"[{host}]" if ":" in host and port else host
    return f"{host}:{port}" if port else host


def _call_later(delay_s: float, callback: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(delay_s, callback)


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, with OpenAI's error body for refused requests."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """The response to a browser's preflight request."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        # "Disallowed CORS origin, method"
        refusal = invalid(f"{bytes(response.body).decode()}.", code="cors_refused").response()
        for name, value in response.headers.items():
            refusal.headers.setdefault(name, value)
        return refusal


class ApiKeys:
    """ASGI middleware that answers 401 to requests without a valid API key.

    `open_paths` and `ALWAYS_OPEN` need no key. The comparison takes the same time for every key, so
    that it reveals nothing about the valid keys.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[SecretStr],
        *,
        open_paths: Iterable[str] = (),
        root_path: str,
    ) -> None:
        self._app = app
        # Digests, because the time of compare_digest depends on the lengths that it compares.
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]
        self._open_paths = {root_path + path for path in (*ALWAYS_OPEN, *open_paths)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app, or answer 401."""
        if scope["type"] != "http" or scope["path"] in self._open_paths or self._has_key(scope):
            await self._app(scope, receive, send)
        else:
            await _refusal(scope).response()(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        digest = _digest(_bearer(scope))
        # All keys are compared, even after one has matched.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def _request_id(scope: Scope) -> str:
    """The client's own id if it is valid, otherwise a new one."""
    for name, value in scope["headers"]:
        if name == HEADER and _VALID_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex


def _with_get_for_head(scope: Scope) -> Scope:
    """Treat HEAD as GET; uvicorn has the original scope, and so omits the body."""
    return {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope


def _bearer(scope: Scope) -> bytes:
    """The key that the client sent; empty when it sent none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = value.partition(b" ")
            return bytes(key.strip()) if scheme.lower() == b"bearer" else b""
    return b""


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _refusal(scope: Scope) -> ApiError:
    if _bearer(scope):
        message = "Incorrect API key provided."
    else:
        message = "You didn't provide an API key: send it as 'Authorization: Bearer KEY'."
    return ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
