"""The batch service: the store and the runner, once this process is the one that works there."""

import asyncio
import logging
from collections.abc import Sequence
from urllib.parse import quote

from configs.schema import Config
from server.batches.database import DatabaseError
from server.batches.job import Limits
from server.batches.runner import BatchRunner
from server.batches.store import Store, StoreTakenError
from server.batches.window import Window
from server.drain import Drain
from server.engine_client import EngineClient
from server.errors import unavailable
from server.metrics import Metrics
from server.reply import Endpoint

RETRY_S = 2.0

logger = logging.getLogger("tdpipe")


class BatchService:
    """Files and batches of one model, in a folder of its own under `data_dir`.

    `was_open` is set once this process works there.
    """

    def __init__(
        self,
        config: Config,
        client: EngineClient,
        endpoints: Sequence[Endpoint],
        drain: Drain,
        metrics: Metrics,
    ) -> None:
        self.model = config.name
        self.paths = sorted(endpoint.path for endpoint in endpoints)
        self._store = Store(config.data_dir / "batches" / quote(config.name, safe=""))
        max_open = config.max_open_batch_requests
        window = Window(endpoints, client, metrics, max_open, lambda: drain.has_begun)
        limits = Limits(
            models=frozenset(config.names),
            max_line_bytes=config.max_body_bytes,
            max_requests=config.max_batch_requests,
        )
        self._runner = BatchRunner(self._store, window, limits)
        self.was_open = asyncio.Event()
        self._problem: str | None = "they are not open yet"

    @property
    def store(self) -> Store:
        """The store. Raises `ApiError` (503) while this process cannot work there."""
        if self._problem is not None:
            # The log says why: paths and other daemons are not the client's.
            message = "Files and batches are not available here now."
            raise unavailable(message, "batches_unavailable")
        return self._store

    @property
    def runner(self) -> BatchRunner:
        """The runner. Raises `ApiError` (503) while this process cannot work there."""
        assert self.store
        return self._runner

    async def run(self) -> None:
        """Work until cancelled, from the moment on that no other process does."""
        while (problem := await self._open()) is not None:
            if problem != self._problem:
                logger.warning("files and batches are not available: %s", problem)
            self._problem = problem
            await asyncio.sleep(RETRY_S)
        self._problem, problem = None, "the server is shutting down"
        self.was_open.set()
        try:
            await self._runner.run()
        # The edge: what is served online goes on.
        except Exception:
            logger.exception("batches have ended in a bug; they go on at the next start")
            problem = "they have failed"
        finally:
            self._problem = problem
            await self._store.close()

    async def _open(self) -> str | None:
        """Why the store cannot be opened now."""
        try:
            await self._store.open()
        except (StoreTakenError, DatabaseError, OSError) as error:
            return str(error)
        return None
