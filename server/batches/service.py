"""The batch service: provides store and runner while this process holds the store's lock."""

import asyncio
import logging
from collections.abc import Sequence

from server.batches.job import BatchLimits
from server.batches.runner import BatchRunner
from server.batches.storage.database import DatabaseError
from server.batches.storage.disk_errors import disk_error
from server.batches.storage.store import Store, StoreTakenError
from server.batches.window import Window
from server.http.errors import unavailable

RETRY_S = 2.0

logger = logging.getLogger("tdpipe")


class BatchService:
    """Files and batches in one folder; `model` is the one that batches name, if it is only one."""

    def __init__(
        self,
        model: str | None,
        paths: Sequence[str],
        store: Store,
        window: Window,
        limits: BatchLimits,
    ) -> None:
        self.model = model
        self.paths = sorted(paths)
        self._store, self._window, self._limits = store, window, limits
        self._runner: BatchRunner | None = None

    @property
    def store(self) -> Store:
        """The store. Raises `ApiError` (503) while it is not open in this process."""
        return self.runner.store

    @property
    def runner(self) -> BatchRunner:
        """The runner. Raises `ApiError` (503) while the store is not open in this process."""
        if self._runner is None:
            # The reason is only in the log: clients must not see paths or other daemons.
            message = "Files and batches are not available at the moment."
            raise unavailable(message, "batches_unavailable")
        return self._runner

    @property
    def num_open(self) -> int:
        """How many batches run in this process and have not ended."""
        return 0 if self._runner is None else self._runner.num_open

    async def run(self) -> None:
        """Run batches until cancelled, while no other process runs those of this folder."""
        while True:
            await self._open()
            try:
                await self._work()
            # The outermost handler: online serving must continue.
            except Exception as error:
                cause, message = disk_error(error), "batches stopped; they resume in %g s: %s"
                if cause is None:
                    logger.exception(message, RETRY_S, "a bug")
                else:
                    logger.error(message, RETRY_S, cause)
            await asyncio.sleep(RETRY_S)

    async def _open(self) -> None:
        """Retry until the store is open; log each new reason why it cannot be opened."""
        logged = ""
        while True:
            try:
                return await self._store.open()
            except (StoreTakenError, DatabaseError, OSError) as error:
                problem = str(error)
            if problem != logged:
                logger.warning("files and batches are not available: %s", problem)
            logged = problem
            await asyncio.sleep(RETRY_S)

    async def _work(self) -> None:
        self._runner = BatchRunner(self._store, self._window, self._limits)
        try:
            await self._runner.run()
        finally:
            self._runner = None
            await self._store.close()
