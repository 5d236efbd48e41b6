"""A generation route: passes a POST body to an endpoint and returns the answer or a stream."""

from contextlib import AsyncExitStack
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from daemon.observability.tracing import Tracing
from server.http.bodies.body_reader import BodyMemory
from server.http.drain import Drain
from server.http.errors import ApiError
from server.http.openapi import BODY_FAILURES, GENERATION, failures, streams, takes
from server.http.request_record import record_of
from server.metrics import Metrics
from server.openai.routes.endpoint import Endpoint
from server.openai.routes.generation_response import GenerationResponse
from server.requests.monitoring.request_trace import RequestTrace

# With the value 1: each event of a stream has the tokens that it covers.
RESUMABLE = "x-tdpipe-resumable"


class GenerationRoute:
    """The route of one endpoint.

    `request`, `response` and `chunk` are the models of the route in the OpenAPI document, which
    shows `example` as a whole answer and as a stream.
    """

    def __init__(
        self,
        endpoint: Endpoint[Any],
        *,
        metrics: Metrics,
        drain: Drain,
        body_memory: BodyMemory,
        log_requests: bool,
        comment_interval_s: float,
        tracing: Tracing | None,
        request: type[BaseModel],
        response: type[BaseModel],
        chunk: type[BaseModel],
        example: dict[str, Any],
        summary: str,
    ) -> None:
        self._endpoint, self._metrics, self._drain = endpoint, metrics, drain
        self._body_memory, self._log_requests = body_memory, log_requests
        self._comment_interval_s, self._tracing = comment_interval_s, tracing
        self._request, self._response, self._chunk = request, response, chunk
        self._example, self._summary = example, summary

    def router(self) -> APIRouter:
        """Return the route as a FastAPI router."""
        router = APIRouter(tags=[GENERATION])
        router.add_api_route(
            self._endpoint.path,
            self.create,
            methods=["POST"],
            summary=self._summary,
            response_model=None,
            responses={
                200: {"model": self._response, "content": streams(self._chunk)},
                **failures(*BODY_FAILURES, 404, 429, 503),
            },
            openapi_extra=takes(
                self._request,
                whole=self._example,
                stream=self._example | {"stream": True, "stream_options": {"include_usage": True}},
            ),
        )
        return router

    async def create(self, request: Request) -> Response:
        """The answer to one request; the request is prepared while the answer is sent."""
        trace = self._begin_trace(request)
        async with AsyncExitStack() as body_memory:
            try:
                self._drain.check()
                body = await body_memory.enter_async_context(self._body_memory.body(request))
            except ApiError as error:
                outcome = self._metrics.count_reason(error)
                self._metrics.requests.labels(outcome).inc()
                record_of(request.scope).outcome = outcome
                raise
            except ClientDisconnect:
                self._metrics.requests.labels("disconnect").inc()
                raise
            return GenerationResponse(
                self._endpoint,
                body,
                body_memory.pop_all(),
                self._metrics,
                self._drain,
                log_requests=self._log_requests,
                comment_interval_s=self._comment_interval_s,
                resumable=request.headers.get(RESUMABLE) == "1",
                trace=trace,
            )

    def _begin_trace(self, request: Request) -> RequestTrace | None:
        """Begin the trace of a request; the outermost layer ends it with the response."""
        if self._tracing is None:
            return None
        attributes: dict[str, str] = {
            "http.request.method": request.method,
            "url.path": request.url.path,
            "client.address": request.client.host if request.client else "unix",
            "tdpipe.request.id": request.state.request_id,
        }
        headers = request.scope["headers"]
        trace = RequestTrace.begin(self._tracing, self._endpoint.path, headers, attributes)
        if trace is not None:
            record = record_of(request.scope)
            record.trace_id, record.on_end = trace.trace_id, trace.end
            record.headers.append(trace.response_header)
        return trace
