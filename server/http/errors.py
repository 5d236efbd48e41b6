"""Error responses: every failure is answered with OpenAI's error body and the right status."""

import re
from collections.abc import Callable, Mapping

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from pydantic_core import ErrorDetails
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match

from server.http.request_record import record_of

_QUOTED = re.compile(r"'([^']*)'")
# The paths without parameters, for clients that ask for another path.
SERVED_PATHS = (
    "/v1/completions",
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/models",
    "/v1/files",
    "/v1/batches",
    "/tokenize",
    "/detokenize",
    "/health",
    "/live",
    "/ready",
    "/load",
    "/version",
    "/metrics",
)
# Paths below which OpenAI keeps the answers.
_NOT_STORED = ("/v1/responses", "/v1/chat/completions")
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
RETRY_AFTER_S = 1
REFUSALS = (
    "queue_full",
    "larger_than_queue",
    "body_memory",
    "tokenizer",
    "chat_template",
    "grammar_checker",
    "model_not_ready",
    "shutting_down",
)
"""Why generation requests are refused with 429 or 503, for the metrics."""
CLIENT_CLOSED_REQUEST = 499  # only for the access log, after the client has gone; nginx's number


class ErrorDetail(BaseModel):
    """An error: its message and codes."""

    message: str
    type: str = Field(description="invalid_request_error, requests or server_error")
    param: str | None = Field(description="the field at fault")
    code: str | None = Field(description="stable identifier of the kind of error")


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class ApiError(Exception):
    """A failure with the status, message and headers of its response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        # For the metrics: a constant, so that clients cannot add label values.
        self.reason = reason or code or "invalid_request"
        self.headers = dict(headers or {})
        self._error = {"message": message, "type": kind, "param": param, "code": code}

    @property
    def details(self) -> dict[str, str | None]:
        """The message, the field at fault and the code."""
        return {name: self._error[name] for name in ("code", "message", "param")}

    def renamed(self, rename: Callable[[str], str]) -> "ApiError":
        """The same error about a request in which fields have other names."""
        error, param = self._error, self._error["param"]
        return ApiError(
            self.status,
            _QUOTED.sub(lambda quoted: f"'{rename(quoted[1])}'", str(self)),
            kind=error["type"] or "",
            param=None if param is None else rename(param),
            code=error["code"],
            headers=self.headers,
            reason=self.reason,
        )

    def body(self) -> bytes:
        """The error body as JSON."""
        return msgspec.json.encode({"error": self._error})

    @property
    def is_final(self) -> bool:
        """Whether retrying the same request cannot succeed."""
        if self.headers.get("x-should-retry") == "false":
            return True
        return self.status < 500 and "retry-after" not in self.headers

    def response(self) -> Response:
        """The complete response, for a request whose response has not begun."""
        return Response(self.body(), self.status, self.headers, media_type="application/json")


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is invalid; `param` names the field."""
    return ApiError(400, message, param=param, code=code)


def invalid_value(path: str, problem: ErrorDetails, param: str) -> ApiError:
    """400: a pydantic error about the value at `path`, turned into a sentence."""
    text = problem["msg"][0].lower() + problem["msg"][1:]
    code = "invalid_type" if problem["type"].endswith("_type") else "invalid_value"
    return invalid(f"Invalid value for '{path}': {text}.", param, code)


def no_such_model(model: str) -> ApiError:
    """404: this server does not serve the model."""
    message = f"The model `{model}` does not exist or you do not have access to it."
    return ApiError(404, message, param="model", code="model_not_found")


def too_busy(message: str, reason: str, *, retry: bool = True) -> ApiError:
    """429: the queue is full; without `retry`, the request exceeds the queue's capacity.

    `reason` is what is exhausted, in a word for the metrics.
    """
    headers = {"retry-after": str(RETRY_AFTER_S)} if retry else {"x-should-retry": "false"}
    code = "rate_limit_exceeded"
    return ApiError(429, message, kind="requests", code=code, headers=headers, reason=reason)


def unavailable(
    message: str, code: str = "service_unavailable", reason: str | None = None
) -> ApiError:
    """503: temporarily unavailable; `reason` is for the metrics, if the code does not tell it."""
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return ApiError(503, message, kind="server_error", code=code, headers=headers, reason=reason)


def timed_out(timeout_s: float) -> ApiError:
    """408: the request's timeout has expired.

    A header tells clients not to retry: they retry a 408 by default, and it would time out again.
    """
    message = f"The answer was not complete within the request's timeout of {timeout_s:g} seconds."
    headers = {"x-should-retry": "false"}
    return ApiError(408, message, kind="requests", code="deadline_exceeded", headers=headers)


def failed(message: str, *, retry: bool = True) -> ApiError:
    """500: the server failed; without `retry`, the same request would fail again."""
    headers = {} if retry else {"x-should-retry": "false"}
    return ApiError(500, message, kind="server_error", code="internal_error", headers=headers)


def install(app: Starlette) -> None:
    """Answer every exception with OpenAI's error body, including those of the framework."""
    app.add_exception_handler(ApiError, _answer)
    app.add_exception_handler(HTTPException, _answer_framework)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(ClientDisconnect, _answer_disconnect)
    app.add_exception_handler(Exception, _answer_bug)


async def _answer(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    record_of(request.scope).reason = error.reason
    return error.response()


async def _answer_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        message = f"Invalid URL ({where}). {_what_is_served(request)}"
        return ApiError(404, message, code="unknown_url").response()
    is_method = error.status_code == 405
    message = f"Method not allowed ({where})" if is_method else str(error.detail)
    headers = dict(error.headers or {})
    if is_method:  # static files are mounted and have no route
        headers["Allow"] = ", ".join(_allowed_methods(request)) or "GET"
    return ApiError(error.status_code, message, headers=headers).response()


def _what_is_served(request: Request) -> str:
    """Say what a client may ask for instead of an unknown path."""
    path = request.url.path.removeprefix(request.scope.get("root_path", ""))
    kept = next((parent for parent in _NOT_STORED if path.startswith(f"{parent}/")), None)
    if kept is not None:
        return f"This server stores nothing of POST {kept}: its answers cannot be fetched later."
    return f"This server serves {', '.join(SERVED_PATHS)}."


def _allowed_methods(request: Request) -> list[str]:
    """The methods of all routes with this path; the framework lists only those of the first."""
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": method})[0] == Match.FULL
            for route in request.app.router.routes
        )
    ]


async def _answer_validation(_request: Request, error: Exception) -> Response:
    """Answer an invalid parameter of the path or the query; the error names the parameter."""
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    param = str(problem["loc"][-1])
    return invalid_value(param, problem, param).response()


async def _answer_disconnect(_request: Request, _error: Exception) -> Response:
    """Set the status of the access log: the client disconnected while its body was being read."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _answer_bug(_request: Request, _error: Exception) -> Response:
    return failed("The server had an error while processing your request.").response()
