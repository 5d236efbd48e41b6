"""The router's app: generation requests are routed, the rest is answered here or forwarded.

Files and batches have the routes of a daemon (`server.batches.routes`).
"""

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Annotated, Any

import msgspec
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from configs.schema.instance_url import checked_url
from configs.schema.route import RouteConfig
from daemon.version import VERSION
from router.front.answer import Answer, Desk
from router.front.forwarding import Forwarding
from router.front.route_trace import RouteTrace
from router.inquiry import read_inquiry
from server.batches.routes import storage_errors
from server.batches.routes.batch_routes import BatchRoutes
from server.batches.routes.file_routes import FileRoutes
from server.batches.service import BatchService
from server.http import errors
from server.http.bodies.body_reader import BodyMemory
from server.http.errors import ApiError, invalid, no_such_model, unavailable
from server.http.middleware import with_middleware
from server.page import files as page_files

GENERATIONS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
MAX_SHOWN = 200
_STORED = ("/v1/files", "/v1/batches")


def build_app(
    config: RouteConfig,
    desk: Desk,
    release: Callable[[str, float], None],
    batches: BatchService,
) -> ASGIApp:
    """The ASGI application. The caller reads the statuses of the instances and runs the batches.

    `release` leaves an instance to other routers for so many seconds; it raises `KeyError`.
    """
    connections, listen = config.connections, config.listen
    body_memory = BodyMemory(connections.max_intake_bytes, connections.max_body_bytes)
    pages = Pages(desk, release, body_memory)
    forwarding = Forwarding(desk, body_memory, listen.root_path)
    generation = Generation(desk, body_memory)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(FileRoutes(batches, config.batches.max_file_bytes).router())
    app.include_router(BatchRoutes(batches, body_memory).router())
    app.router.routes.extend(
        [
            *(Route(path, generation.create, methods=["POST"]) for path in GENERATIONS),
            Route("/health", pages.health),
            Route("/live", pages.live),
            Route("/ready", pages.ready),
            Route("/load", pages.load),
            Route("/version", pages.version),
            Route("/metrics", pages.metrics),
            Route("/instances", pages.instances),
            Route("/instances/release", pages.release, methods=["POST"]),
            *page_files.routes(page_files.ROUTER, listen.root_path),
            # A daemon's own page; forwarded, it would be that of any of them.
            Route("/page/{_:path}", _unknown),
            Route("/pipeline/status", _unknown),
            # The status of an instance is for its router.
            Route("/instance/{_:path}", _unknown, methods=["GET", "POST"]),
            Route("/v1/models", pages.models),
            Route("/v1/models/{model:path}", pages.model),
            # Nothing below these paths is an instance's.
            *(Route(f"{path}/{{_:path}}", _unknown, methods=["GET", "POST"]) for path in _STORED),
            Route("/{_:path}", forwarding.forward, methods=["GET", "POST"]),
        ]
    )
    errors.install(app)
    storage_errors.install(app)
    return with_middleware(
        app,
        config.access,
        root_path=listen.root_path,
        access_log=config.logs.access_log,
        open_paths=page_files.paths(page_files.ROUTER),
    )


class Release(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /instances/release: the router asks for the instance again afterwards."""

    instance: str
    seconds: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 10.0


class Generation:
    """The generation routes."""

    def __init__(self, desk: Desk, body_memory: BodyMemory) -> None:
        self._desk, self._body_memory = desk, body_memory

    async def create(self, request: Request) -> Response:
        """The answer to one request; the request is routed while the answer is sent."""
        async with AsyncExitStack() as held:
            try:
                self._desk.drain.check()
                body = await held.enter_async_context(self._body_memory.body(request))
                inquiry = read_inquiry(body, self._desk.ratio)
            except ApiError as error:
                self._desk.metrics.count_early(error.status)
                raise
            except ClientDisconnect:
                self._desk.metrics.count_early(errors.CLIENT_CLOSED_REQUEST)
                raise
            path = request.url.path.removeprefix(request.scope.get("root_path", ""))
            trace = RouteTrace.begin(self._desk.tracing, request, inquiry.model)
            return Answer(self._desk, path, inquiry, held.pop_all(), trace)
        raise AssertionError("the block returns or raises")


class Pages:
    """What the router answers itself."""

    def __init__(
        self, desk: Desk, release: Callable[[str, float], None], body_memory: BodyMemory
    ) -> None:
        self._desk, self._fleets, self._body_memory = desk, desk.fleets, body_memory
        self._release = release
        self._created = int(time.time())

    async def health(self, _request: Request) -> Response:
        """200 while an instance takes requests."""
        links = self._fleets.links.values()
        num_up = sum(link.is_up for link in links)
        status = "ok" if num_up else "no instance"
        if self._desk.drain.has_begun:
            status = "draining"
        body = {"status": status, "instances": len(links), "instances_up": num_up}
        return JSONResponse(body, 503 if status == "no instance" else 200)

    async def live(self, _request: Request) -> Response:
        """200 while this process answers."""
        return JSONResponse({"status": "alive"})

    async def ready(self, _request: Request) -> Response:
        """200 while requests are taken and an instance is there for them."""
        self._desk.drain.check()
        if self._fleets.any_up() is None:
            raise unavailable("No instance is ready.", "no_instance")
        return JSONResponse({"status": "ready"})

    async def load(self, _request: Request) -> Response:
        """The requests that are being answered, as vLLM tells them."""
        return JSONResponse({"server_load": self._desk.drain.num_open})

    async def version(self, _request: Request) -> Response:
        """The installed version."""
        return JSONResponse({"version": VERSION})

    async def metrics(self, _request: Request) -> Response:
        """Prometheus' text format."""
        self._desk.kept_memory.show()
        return Response(self._desk.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def instances(self, _request: Request) -> Response:
        """The state of each instance, and the requests that wait for one, for people."""
        links = self._fleets.links.values()
        described = [link.describe() for link in links]
        return JSONResponse({"pending_requests": self._fleets.num_pending, "instances": described})

    async def release(self, request: Request) -> Response:
        """Leave an instance to other routers. Raises `ApiError` (400, 404, 413, 415, 429)."""
        async with self._body_memory.body(request) as body:
            try:
                asked = msgspec.json.decode(body, type=Release)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise invalid(f"{error}") from error
        try:
            name = checked_url(asked.instance)
            self._release(name, asked.seconds)
        except (ValueError, KeyError):
            name = asked.instance[:MAX_SHOWN]
            raise ApiError(404, f"There is no instance {name}.", code="unknown_instance") from None
        return JSONResponse({"released": name})

    async def models(self, _request: Request) -> Response:
        """The models of all instances."""
        return JSONResponse({"object": "list", "data": list(self._models().values())})

    async def model(self, request: Request) -> Response:
        """One model by name. Raises `ApiError` (404)."""
        name = request.path_params["model"]
        model = self._models().get(name)
        if model is None:
            raise no_such_model(name)
        return JSONResponse(model)

    def _models(self) -> dict[str, dict[str, Any]]:
        """By name, as the instances that have it describe it; of lengths, the shortest."""
        found: dict[str, dict[str, Any]] = {}
        for link in self._fleets.links.values():
            status = link.status
            if status is None:
                continue
            for name in status.models:
                known = found.setdefault(name, self._model(name, status.models[0]))
                limits = (known["max_model_len"], status.max_model_len)
                known["max_model_len"] = min((each for each in limits if each), default=None)
        return found

    def _model(self, name: str, root: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "tdpipe",
            "root": root,
            "parent": None,
            "max_model_len": None,
        }


async def _unknown(_request: Request) -> Response:
    raise HTTPException(404)
