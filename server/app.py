"""The app: every route of the server, assembled from the parts that it is handed."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from configs.schema import Config
from server import errors
from server.batches.batch_routes import BatchRoutes, CreateBatch
from server.batches.file_routes import FileRoutes
from server.batches.service import BatchService
from server.chat_protocol import ChatCompletion, ChatRequest
from server.drain import Drain
from server.endpoints import Endpoints
from server.engine_client import EngineClient
from server.generation_route import GenerationRoute
from server.metrics import Metrics
from server.operations import VERSION, Operations
from server.protocol import Completion, CompletionRequest
from server.tokenizer import Tokenizer


class App(FastAPI):
    """FastAPI with the request bodies in its document that the routes parse themselves."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            template = "#/components/schemas/{model}"
            _, bodies = models_json_schema(
                [(body, "validation") for body in (CompletionRequest, ChatRequest, CreateBatch)],
                ref_template=template,
            )
            document["components"]["schemas"] |= bodies["$defs"]
        return super().openapi()


def build_app(
    config: Config,
    client: EngineClient,
    tokenizer: Tokenizer,
    drain: Drain,
    metrics: Metrics,
    endpoints: Endpoints,
    batches: BatchService,
) -> App:
    """The ASGI application. The caller runs what it hands over."""
    app = App(title="tdpipe", version=VERSION, docs_url=None, redoc_url=None)
    errors.install(app)
    app.include_router(Operations(config, client, metrics, drain, tokenizer.fingerprint).router())
    completions = GenerationRoute(
        endpoints.completions,
        metrics,
        drain,
        request=CompletionRequest,
        response=Completion,
        summary="Complete a text",
    )
    app.include_router(completions.router())
    chat = GenerationRoute(
        endpoints.chat,
        metrics,
        drain,
        request=ChatRequest,
        response=ChatCompletion,
        summary="Answer a conversation",
    )
    app.include_router(chat.router())
    app.include_router(FileRoutes(batches, config.max_file_bytes).router())
    app.include_router(BatchRoutes(batches).router())
    return app
