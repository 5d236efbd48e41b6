"""The operational routes: health, readiness, load, version, models and metrics."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.responses import Response

from configs.schema.model import ModelConfig
from configs.schema.pipeline import PipelineConfig
from daemon.processes import child_process
from daemon.version import VERSION
from server.http.drain import Drain
from server.http.errors import no_such_model, unavailable
from server.http.openapi import MODELS, OPERATIONS, failures
from server.metrics import Metrics
from server.openai.fields.completion import Model, ModelList
from server.requests.engine_client import SILENCE_S, EngineClient

_TEXT = {"text/plain": {"schema": {"type": "string"}}}


class ProcessHealth(BaseModel):
    """The age of a process's last heartbeat."""

    heartbeat_age_s: float | None


class EngineHealth(ProcessHealth):
    """The engine, and whether it schedules requests."""

    ready: bool


class StageHealth(ProcessHealth):
    """One stage."""

    stage: int
    pid: int


class Health(BaseModel):
    """The answer of GET /health, with 503 unless the status is ok or draining."""

    status: str = Field(description="ok, draining, or what is missing")
    reason: str | None = Field(description="the cause, where it is known")
    server: ProcessHealth
    engine: EngineHealth
    stages: list[StageHealth]


class Liveness(BaseModel):
    """The answer of GET /live."""

    status: str


class Readiness(BaseModel):
    """The answer of GET /ready."""

    status: str


class Version(BaseModel):
    """The answer of GET /version."""

    version: str
    attention: list[str] = Field(
        description="the attention backend of each stage; empty until all stages are ready"
    )
    batch_invariant: bool = Field(
        description="whether the tokens of an answer do not depend on the other requests, unless "
        "it is preempted; false until all stages are ready"
    )


class Load(BaseModel):
    """The answer of GET /load; all but `server_load` is ours."""

    server_load: int = Field(description="vLLM's: requests that are being answered")
    queued_sequences: int = Field(description="without a first token yet")
    waiting_sequences: int = Field(description="of those in the engine, the ones without KV")
    live_sequences: int = Field(description="holding KV")
    kv_usage: float = Field(description="part of the KV blocks that are in use, 0 to 1")


class Operations:
    """The routes that report the daemon's state."""

    def __init__(
        self,
        model: ModelConfig,
        pipeline: PipelineConfig,
        folder: Path,
        client: EngineClient,
        metrics: Metrics,
        drain: Drain,
        tokenizer_fingerprint: str,
    ) -> None:
        self._tokenizer_fingerprint = tokenizer_fingerprint
        self._served, self._pipeline, self._folder = model, pipeline, folder
        self._client = client
        self._metrics = metrics
        self._drain = drain
        self._created = int(time.time())

    def router(self) -> APIRouter:
        """Return the routes as a FastAPI router."""
        router = APIRouter()
        get = partial(router.add_api_route, tags=[OPERATIONS])
        describe = partial(router.add_api_route, tags=[MODELS])
        get(
            "/health",
            self.health,
            summary="Heartbeats of every process",
            response_model=Health,
            responses={503: {"model": Health, "description": "Something is missing"}},
        )
        get(
            "/live",
            self.live,
            summary="Whether the daemon looks after its processes",
            response_model=Liveness,
            responses=failures(503),
        )
        get(
            "/ready",
            self.ready,
            summary="Whether requests are being scheduled",
            response_model=Readiness,
            responses=failures(503),
        )
        get("/load", self.load, summary="Current load", response_model=Load)
        get("/version", self.version, summary="The daemon's version", response_model=Version)
        get(
            "/metrics",
            self.metrics,
            summary="Metrics for Prometheus",
            response_class=Response,
            responses={200: {"content": _TEXT}},
        )
        describe("/v1/models", self.models, summary="List the models", response_model=ModelList)
        describe(
            "/v1/models/{model:path}",
            self.model,
            summary="Describe a model",
            response_model=Model,
            responses=failures(404),
        )
        return router

    async def health(self) -> JSONResponse:
        """200 while every process sends heartbeats: server, engine and all stages."""
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
        failure = child_process.reported_failure(self._folder)
        status = "failed" if failure else self._status(engine_age_s, stages)
        body = {
            "status": status,
            "reason": failure or (stats.trouble if stats else None) or None,
            "server": {"heartbeat_age_s": round(now - client.ticked_at, 3)},
            "engine": {
                "heartbeat_age_s": None if engine_age_s is None else round(engine_age_s, 3),
                "ready": client.is_ready,
            },
            "stages": stages,
        }
        return JSONResponse(body, 200 if status in ("ok", "draining") else 503)

    async def live(self) -> Liveness:
        """200 also while the model is loaded and lost processes are restarted; 503 at the end.

        This process ends with the supervisor, so an answer shows that the supervisor is there. It
        gives up for reasons that only a new daemon could overcome.
        """
        failure = child_process.reported_failure(self._folder)
        if failure:
            raise unavailable(f"The daemon has given up: {failure}")
        return Liveness(status="alive")

    async def ready(self) -> Readiness:
        """200 while a completion would be scheduled; during a restart it is accepted, and waits."""
        self._drain.check()
        self._client.check_ready()
        return Readiness(status="ready")

    async def load(self) -> Load:
        """The figures that a load balancer in front of several daemons needs."""
        stats = self._client.stats
        return Load(
            server_load=self._drain.num_open,
            queued_sequences=self._client.num_queued,
            waiting_sequences=stats.waiting if stats else 0,
            live_sequences=stats.live if stats else 0,
            kv_usage=stats.blocks_used / max(1, stats.blocks_total) if stats else 0.0,
        )

    async def version(self) -> Version:
        """The installed version, and what the stages run."""
        ready = self._client.ready
        return Version(
            version=VERSION,
            attention=list(ready.attention) if ready else [],
            batch_invariant=ready is not None and ready.batch_invariant,
        )

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(self._metrics.render(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> ModelList:
        """The one model that is served, under each of its names."""
        return ModelList(data=[self._model(name) for name in self._served.names])

    async def model(self, model: str) -> Model:
        """One model by name."""
        if model not in self._served.names:
            raise no_such_model(model)
        return self._model(model)

    def _model(self, name: str) -> Model:
        ready = self._client.ready
        limit = ready.max_model_len if ready else self._served.max_model_len
        return Model(
            id=name,
            created=self._created,
            root=self._served.name,
            max_model_len=limit,
            tokenizer_fingerprint=self._tokenizer_fingerprint,
        )

    def _status(self, engine_age_s: float | None, stages: list[dict[str, Any]]) -> str:
        """Return the status in one or two words."""
        if engine_age_s is None:
            return "starting"
        if engine_age_s > SILENCE_S or not self._client.is_connected:
            return "engine lost"
        alive = [s for s in stages if s["heartbeat_age_s"] <= self._pipeline.heartbeat_timeout]
        if len(alive) < self._pipeline.pipeline_parallel_size:
            return "stage missing"
        if not self._client.is_ready:
            return "not ready"
        return "draining" if self._drain.has_begun else "ok"
