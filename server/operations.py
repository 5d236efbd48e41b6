"""The operator's routes: health, readiness, version, models and metrics."""

import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from configs.schema import Config
from server.drain import Drain
from server.engine_client import SILENCE_S, EngineClient
from server.errors import no_such_model
from server.metrics import Metrics
from server.protocol import ErrorBody, Model, ModelList

try:
    VERSION = version("tdpipe")
except PackageNotFoundError:
    VERSION = "0.1.0"

_NOT_NOW: dict[int | str, dict[str, Any]] = {503: {"description": "Not now, but soon"}}


class Operations:
    """The routes that tell how the daemon is."""

    def __init__(
        self,
        config: Config,
        client: EngineClient,
        metrics: Metrics,
        drain: Drain,
        tokenizer_fingerprint: str,
    ) -> None:
        self._tokenizer_fingerprint = tokenizer_fingerprint
        self._config = config
        self._client = client
        self._metrics = metrics
        self._drain = drain
        self._created = int(time.time())

    def router(self) -> APIRouter:
        """The routes as FastAPI takes them."""
        router = APIRouter()
        get = router.add_api_route
        get("/health", self.health, summary="Heartbeats of every process", responses=_NOT_NOW)
        get("/ready", self.ready, summary="Whether requests are accepted", responses=_NOT_NOW)
        get("/version", self.version, summary="The daemon's version")
        get("/metrics", self.metrics, summary="Figures for Prometheus", response_class=Response)
        get("/v1/models", self.models, summary="List the models", response_model=ModelList)
        get(
            "/v1/models/{model:path}",
            self.model,
            summary="Describe a model",
            response_model=Model,
            responses={404: {"model": ErrorBody}},
        )
        return router

    async def health(self) -> JSONResponse:
        """200 while every process's heart beats: server, engine and all stages."""
        now = time.monotonic()
        client, stats = self._client, self._client.stats
        engine_age_s = now - client.stats_at if stats else None
        stages = [
            {
                "stage": stage.stage,
                "pid": stage.pid,
                "heartbeat_age_s": round(stage.heartbeat_age_s + (engine_age_s or 0.0), 3),
            }
            for stage in (stats.stages if stats else ())
        ]
        status = self._status(engine_age_s, stages)
        body = {
            "status": status,
            "server": {"heartbeat_age_s": round(now - client.ticked_at, 3)},
            "engine": {
                "heartbeat_age_s": None if engine_age_s is None else round(engine_age_s, 3),
                "ready": client.is_ready,
            },
            "stages": stages,
        }
        return JSONResponse(body, 200 if status in ("ok", "draining") else 503)

    async def ready(self) -> JSONResponse:
        """200 while a completion would be accepted."""
        self._drain.check()
        self._client.check_ready()
        return JSONResponse({"status": "ready"})

    async def version(self) -> dict[str, str]:
        """The installed version."""
        return {"version": VERSION}

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> ModelList:
        """The one model that is served."""
        return ModelList(data=[self._model()])

    async def model(self, model: str) -> Model:
        """One model by name."""
        if model != self._config.name:
            raise no_such_model(model)
        return self._model()

    def _model(self) -> Model:
        ready = self._client.ready
        limit = ready.max_model_len if ready else self._config.max_model_len
        return Model(
            id=self._config.name,
            created=self._created,
            max_model_len=limit,
            tokenizer_fingerprint=self._tokenizer_fingerprint,
        )

    def _status(self, engine_age_s: float | None, stages: list[dict[str, Any]]) -> str:
        """In one word: what is wrong, if anything is."""
        if engine_age_s is None:
            return "starting"
        if engine_age_s > SILENCE_S or not self._client.is_connected:
            return "engine lost"
        alive = [s for s in stages if s["heartbeat_age_s"] <= self._config.heartbeat_timeout]
        if len(alive) < self._config.pipeline_parallel_size:
            return "stage missing"
        if not self._client.is_ready:
            return "not ready"
        return "draining" if self._drain.has_begun else "ok"
