"""Forwarding: other requests, such as /tokenize, are answered by any instance that is up.

A request with a model is answered by one that has the model.
"""

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from router.front.answer import Desk, whole_body
from router.front.headers import to_client, to_instance
from router.upstream.connection import UnreachableError, UpstreamLostError
from server.http.bodies.body_reader import BodyMemory
from server.http.errors import unavailable

TIMEOUT_S = 60.0


class _Asked(msgspec.Struct):
    model: object = None


_decode = msgspec.json.Decoder(_Asked).decode


class Forwarding:
    """Forwards requests whole, and answers them whole."""

    def __init__(self, desk: Desk, body_memory: BodyMemory, root_path: str) -> None:
        self._desk, self._body_memory, self._root_path = desk, body_memory, root_path.encode()

    async def forward(self, request: Request) -> Response:
        """The answer of an instance; one that accepts no connection is replaced by another."""
        with self._desk.drain.request():
            self._desk.drain.check()
            if request.method == "GET":
                return await self._forward(request, None)
            async with self._body_memory.body(request) as body:
                return await self._forward(request, body)

    async def _forward(self, request: Request, body: bytes | None) -> Response:
        headers = to_instance(request.scope["headers"], request.state.request_id)
        target = self._target(request.scope)
        model = None if body is None else _model_of(body)
        for _ in range(self._desk.max_attempts):
            link = self._desk.fleets.any_up(model)
            if link is None:
                break
            address = link.pool.address
            asking = (
                address.get(target, headers)
                if body is None
                else address.post(target, body, headers)
            )
            try:
                async with asyncio.timeout(TIMEOUT_S), link.pool.asked(asking) as upstream:
                    assert upstream.head is not None
                    head, answer = upstream.head, await whole_body(upstream)
            except UnreachableError as error:
                self._desk.fleets.lose(link.name, str(error))
                continue
            except (UpstreamLostError, TimeoutError) as error:
                message = f"The instance did not answer: {error or 'it took too long'}."
                raise unavailable(message, "instance_lost") from error
            response = Response(answer, head.status)
            response.raw_headers = to_client(head.headers, len(answer))
            return response
        raise unavailable("No instance is ready. Please retry shortly.", "no_instance")

    def _target(self, scope: Scope) -> bytes:
        """The path and query as the client wrote them, without the prefix of a reverse proxy."""
        path: bytes = scope.get("raw_path") or scope["path"].encode()
        if self._root_path and (path + b"/").startswith(self._root_path + b"/"):
            path = path.removeprefix(self._root_path) or b"/"
        query: bytes = scope["query_string"]
        return path + b"?" + query if query else path


def _model_of(body: bytes) -> str | None:
    """The model that a body names; the instance answers what is wrong with it."""
    try:
        model = _decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return model if isinstance(model, str) else None
