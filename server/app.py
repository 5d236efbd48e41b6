"""The app: every route of the server, assembled from the parts that it is handed."""

from typing import Any

from fastapi import FastAPI
from pydantic.json_schema import models_json_schema

from configs.schema import Config
from server import errors
from server.batches.batch_routes import BatchRoutes, CreateBatch
from server.batches.file_routes import FileRoutes
from server.batches.service import BatchService
from server.completions import Completions
from server.drain import Drain
from server.engine_client import EngineClient
from server.generation import Generations
from server.generation_route import GenerationRoute
from server.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.operations import VERSION, Operations
from server.planner import Planner
from server.protocol import Completion, CompletionRequest
from server.tokenizer import Tokenizer


class App(FastAPI):
    """FastAPI with the request bodies in its document that the routes parse themselves."""

    batches: BatchService

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            template = "#/components/schemas/{model}"
            _, bodies = models_json_schema(
                [(CompletionRequest, "validation"), (CreateBatch, "validation")],
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
    predictor: LengthPredictor,
) -> App:
    """The ASGI application. The caller runs `client`, `predictor` and the app's `batches`."""
    app = App(title="tdpipe", version=VERSION, docs_url=None, redoc_url=None)
    errors.install(app)
    app.include_router(Operations(config, client, metrics, drain, tokenizer.fingerprint).router())
    planner = Planner(config, client, tokenizer)
    generations = Generations(client, tokenizer, metrics, predictor, config.max_num_queued_reqs)
    completions = Completions(client, tokenizer, planner, generations)
    route = GenerationRoute(
        completions,
        metrics,
        drain,
        request=CompletionRequest,
        response=Completion,
        summary="Complete a text",
    )
    app.include_router(route.router())
    app.batches = BatchService(config, client, [completions], drain)
    app.include_router(FileRoutes(app.batches, config.max_file_bytes).router())
    app.include_router(BatchRoutes(app.batches).router())
    return app
