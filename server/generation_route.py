"""A generation route: an endpoint's door, POST a body and get an answer, whole or as a stream."""

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from server.answer import Answer
from server.connection import read_body
from server.drain import Drain
from server.errors import ApiError
from server.metrics import Metrics
from server.protocol import ErrorBody
from server.reply import Endpoint

SSE_TYPE = "text/event-stream"
CLIENT_CLOSED_REQUEST = 499  # nobody reads it; nginx's number, for the access log


class GenerationRoute:
    """The route of one endpoint; `request` and `response` are its bodies in the document."""

    def __init__(
        self,
        endpoint: Endpoint,
        metrics: Metrics,
        drain: Drain,
        *,
        request: type[BaseModel],
        response: type[BaseModel],
        summary: str,
    ) -> None:
        self._endpoint, self._metrics, self._drain = endpoint, metrics, drain
        self._request, self._response, self._summary = request, response, summary

    def router(self) -> APIRouter:
        """The route as FastAPI takes it."""
        schema = {"$ref": f"#/components/schemas/{self._request.__name__}"}
        router = APIRouter()
        router.add_api_route(
            self._endpoint.path,
            self.create,
            methods=["POST"],
            summary=self._summary,
            response_model=None,
            responses={
                200: {"model": self._response, "content": {SSE_TYPE: {}}},
                "4XX": {"model": ErrorBody},
                "5XX": {"model": ErrorBody},
            },
            openapi_extra={
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": schema}},
                }
            },
        )
        return router

    async def create(self, request: Request) -> Response:
        """The answer to one request; it submits to the engine only when it is sent."""
        try:
            self._drain.check()
            reply = await self._endpoint.prepare(await read_body(request))
        except ApiError:
            self._metrics.requests.labels("refused").inc()
            raise
        except ClientDisconnect:
            self._metrics.requests.labels("disconnect").inc()
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        return Answer(reply, self._metrics, self._drain)
