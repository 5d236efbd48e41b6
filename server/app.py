"""The app: every route of the server, assembled from the parts that it is handed."""

from collections.abc import Callable, Iterator
from functools import partial

from starlette.types import ASGIApp

from configs.config import Config
from configs.schema.server import ServerConfig
from daemon.observability.tracing import Tracing
from daemon.version import VERSION
from server.batches.routes import storage_errors
from server.batches.routes.batch_routes import BatchRoutes
from server.batches.routes.file_routes import FileRoutes
from server.batches.service import BatchService
from server.endpoints import Endpoints
from server.http import docs_page, errors
from server.http.bodies.body_reader import BodyMemory
from server.http.drain import Drain
from server.http.middleware import ALWAYS_OPEN, with_middleware
from server.http.openapi import App
from server.metrics import Metrics
from server.openai.fields.batch import CreateBatch
from server.openai.fields.chat import ChatRequest
from server.openai.fields.chat_answer import ChatCompletion, ChatCompletionChunk
from server.openai.fields.completion import Completion, CompletionChunk, CompletionRequest
from server.openai.fields.responses import ResponsesRequest
from server.openai.fields.responses_answer import ResponseObject, ResponseStreamEvent
from server.openai.routes.generation_route import GenerationRoute
from server.openai.routes.instance_status import InstanceStatuses
from server.openai.routes.operations import Operations
from server.openai.routes.tokenization import DetokenizeRequest, Tokenization, TokenizeRequest
from server.page import files as page_files
from server.page.status_stream import PipelineStatuses
from server.requests.engine_client import EngineClient
from server.text.tokenizer import Tokenizer


def build_app(
    config: Config,
    client: EngineClient,
    tokenizer: Tokenizer,
    drain: Drain,
    metrics: Metrics,
    endpoints: Endpoints,
    batches: BatchService,
    tracing: Tracing | None = None,
) -> ASGIApp:
    """The ASGI application. The caller runs the client, the endpoints and the batches."""
    limits, logs = config.server.limits, config.logs
    connections = config.server.connections
    app = _empty_app(config.server)
    operations = Operations(
        config.model,
        config.pipeline,
        config.runtime.folder,
        client,
        metrics,
        drain,
        tokenizer.fingerprint,
    )
    app.include_router(operations.router())
    digest = endpoints.generations.digest
    app.include_router(InstanceStatuses(config, client, drain, digest).router())
    body_memory = BodyMemory(connections.max_intake_bytes, connections.max_body_bytes)
    tokenization = Tokenization(
        client,
        tokenizer,
        endpoints.planner,
        endpoints.chat_template,
        body_memory,
        endpoints.unknown_fields,
        shows_info=config.server.pages.enable_tokenizer_info_endpoint,
    )
    app.include_router(tokenization.router())
    new_route = partial(
        GenerationRoute,
        metrics=metrics,
        drain=drain,
        body_memory=body_memory,
        log_requests=logs.log_requests,
        comment_interval_s=limits.stream_comment_interval,
        tracing=tracing,
    )
    for route in _generation_routes(new_route, endpoints, config.model.name):
        app.include_router(route.router())
    unknown_fields, max_file_bytes = endpoints.unknown_fields, config.batches.max_file_bytes
    app.include_router(FileRoutes(batches, max_file_bytes, unknown_fields).router())
    app.include_router(BatchRoutes(batches, body_memory, unknown_fields).router())
    root_path, page = config.server.listen.root_path, page_files.DAEMON
    if config.server.pages.disable_pipeline_page:
        page = {}
    else:
        app.include_router(PipelineStatuses(config, client, drain, metrics).router())
    app.router.routes.extend(page_files.routes(page, root_path))
    storage_errors.install(app)
    return with_middleware(
        app,
        config.server.access,
        root_path=root_path,
        access_log=logs.access_log,
        open_paths=page_files.paths(page),
    )


def _generation_routes(
    new_route: Callable[..., GenerationRoute], endpoints: Endpoints, model: str
) -> Iterator[GenerationRoute]:
    yield new_route(
        endpoints.completions,
        request=CompletionRequest,
        response=Completion,
        chunk=CompletionChunk,
        example={"model": model, "prompt": "Count to seven in words.\n", "max_tokens": 40},
        summary="Complete a text",
    )
    yield new_route(
        endpoints.chat,
        request=ChatRequest,
        response=ChatCompletion,
        chunk=ChatCompletionChunk,
        example={
            "model": model,
            "messages": [{"role": "user", "content": "Count to seven in words."}],
        },
        summary="Answer a conversation",
    )
    yield new_route(
        endpoints.responses,
        request=ResponsesRequest,
        response=ResponseObject,
        chunk=ResponseStreamEvent,
        example={"model": model, "input": "Count to seven in words."},
        summary="Answer a conversation, in the format of the Responses API",
    )


def _empty_app(config: ServerConfig) -> App:
    """The application without routes but those of its document."""
    pages, access = config.pages, config.access
    app = App(
        models=[
            CompletionRequest,
            CompletionChunk,
            ChatRequest,
            ChatCompletionChunk,
            ResponsesRequest,
            ResponseStreamEvent,
            CreateBatch,
            TokenizeRequest,
            DetokenizeRequest,
        ],
        needs_key=bool(access.api_key),
        strict_fields=config.limits.strict_fields,
        open_paths=(*ALWAYS_OPEN, *access.open_paths),
        title="tdpipe",
        version=VERSION,
        redirect_slashes=False,
        openapi_url=None if pages.disable_fastapi_docs else "/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    if not pages.disable_fastapi_docs:
        docs_page.install(app)
    return app
