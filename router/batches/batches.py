"""The files and batches of a router: kept in one folder, for the models of all instances."""

import asyncio
from collections.abc import Collection

from configs.schema.route import RouteConfig
from router.batches.instance_lines import InstanceLines
from router.fleets import Fleets
from router.front.answer import Desk
from server.batches.job import BatchLimits
from server.batches.service import BatchService
from server.batches.storage.store import Store
from server.batches.window import Window

FOLDER = "router"
POLL_INTERVAL_S = 0.1
MODELS_PATIENCE_S = 10.0
"""For so long a validation waits for the models of further instances, when one has told its own."""


def build_batches(config: RouteConfig, desk: Desk, paths: Collection[str]) -> BatchService:
    """Build the batch service of a router, for lines with these paths; the caller runs it."""
    lines, fleets = InstanceLines(desk), desk.fleets
    batches = config.batches

    def max_open() -> int:
        return config.max_open_lines(sum(link.is_up for link in fleets.links.values()))

    service = BatchService(
        None,
        sorted(paths),
        Store(batches.data_dir / FOLDER),
        Window(lines.answer, max_open, lines.count),
        BatchLimits(
            models=lambda: served_models(fleets),
            max_line_bytes=config.connections.max_body_bytes,
            max_requests=batches.max_batch_requests,
        ),
    )
    desk.metrics.open_batches.set_function(lambda: service.num_open)
    return service


async def served_models(fleets: Fleets) -> frozenset[str]:
    """The models of all instances; it waits until they are known.

    After a start, the models of an instance are known with its first status. Those of an instance
    that sends none are not waited for any longer than `MODELS_PATIENCE_S`.
    """
    waited_s = 0.0
    while True:
        statuses = [link.status for link in fleets.links.values()]
        known = [status for status in statuses if status is not None]
        if known and (len(known) == len(statuses) or waited_s >= MODELS_PATIENCE_S):
            return frozenset(name for status in known for name in status.models)
        await asyncio.sleep(POLL_INTERVAL_S)
        waited_s += POLL_INTERVAL_S if known else 0.0
