"""The app: every route of the server, assembled from the parts that it is handed."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from configs.schema import Config
from server import docs_page, errors
from server.access import HEADER, Access
from server.api_keys import ApiKeys
from server.completions import Completions
from server.document import App
from server.drain import Drain
from server.engine_client import EngineClient
from server.generation import Generations
from server.generation_route import GenerationRoute
from server.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.operations import VERSION, Operations
from server.planner import Planner
from server.protocol import Completion, CompletionRequest
from server.root_path import RootPath
from server.tokenization import DetokenizeRequest, Tokenization, TokenizeRequest
from server.tokenizer import Tokenizer


def build_app(
    config: Config,
    client: EngineClient,
    tokenizer: Tokenizer,
    drain: Drain,
    metrics: Metrics,
    predictor: LengthPredictor,
) -> ASGIApp:
    """The ASGI application. The caller runs `client` and `predictor`."""
    app = App(
        bodies=[CompletionRequest, TokenizeRequest, DetokenizeRequest],
        needs_key=bool(config.api_key),
        title="tdpipe",
        version=VERSION,
        redirect_slashes=False,
        openapi_url=None if config.disable_fastapi_docs else "/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    if not config.disable_fastapi_docs:
        docs_page.install(app)
    app.include_router(Operations(config, client, metrics, drain, tokenizer.fingerprint).router())
    planner = Planner(config, client, tokenizer)
    tokenization = Tokenization(client, tokenizer, planner, config.max_body_bytes)
    app.include_router(tokenization.router())
    generations = Generations(client, tokenizer, metrics, predictor, config.max_num_queued_reqs)
    completions = GenerationRoute(
        Completions(client, tokenizer, planner, generations),
        metrics,
        drain,
        config,
        request=CompletionRequest,
        response=Completion,
        summary="Complete a text",
    )
    app.include_router(completions.router())
    return _behind_doors(app, config)


def _behind_doors(app: ASGIApp, config: Config) -> ASGIApp:
    """What a request passes before the app: its name and log line, CORS, the check of its key.

    They stand outside of FastAPI's own layers, so that its answers to bugs pass through them too.
    """
    if config.api_key:
        app = ApiKeys(app, config.api_key, root_path=config.root_path)
    if config.allowed_origins:
        app = CORSMiddleware(
            app,
            allow_origins=config.allowed_origins,
            allow_methods=config.allowed_methods,
            allow_headers=config.allowed_headers,
            allow_credentials=config.allow_credentials,
            expose_headers=[HEADER.decode()],
        )
    app = Access(app, root_path=config.root_path, access_log=config.access_log)
    return RootPath(app, config.root_path) if config.root_path else app
