"""The files and batches of a daemon: of one model, run by one engine."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from configs.config import Config
from daemon.observability.tracing import Tracing
from server.batches.engine_lines import engine_window
from server.batches.job import BatchLimits
from server.batches.service import BatchService
from server.batches.storage.store import Store
from server.http.drain import Drain
from server.metrics import Metrics
from server.openai.routes.endpoint import Endpoint
from server.requests.engine_client import EngineClient


def folder_name(model: str) -> str:
    """Return the model's name as a folder name that cannot leave the parent folder."""
    name = quote(model, safe="")
    return name if name.strip(".") else name.replace(".", "%2E")


def build_batches(
    config: Config,
    client: EngineClient,
    endpoints: Sequence[Endpoint[Any]],
    drain: Drain,
    metrics: Metrics,
    tracing: Tracing | None = None,
) -> BatchService:
    """Build the batch service of one model with these endpoints; the caller runs it."""
    max_open = config.max_open_batch_requests
    names = frozenset(config.model.names)

    async def models() -> frozenset[str]:
        return names

    service = BatchService(
        config.model.name,
        [endpoint.path for endpoint in endpoints],
        Store(config.runtime.data_dir / "batches" / folder_name(config.model.name)),
        engine_window(endpoints, client, metrics, max_open, lambda: drain.has_begun, tracing),
        BatchLimits(
            models=models,
            max_line_bytes=config.server.connections.max_body_bytes,
            max_requests=config.batches.max_batch_requests,
        ),
    )
    metrics.open_batches.set_function(lambda: service.num_open)
    return service
