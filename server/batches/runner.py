"""The batch runner: runs a job for every open batch."""

import asyncio
import logging
import time

from server.batches.job import BatchLimits, BatchLocks, Job
from server.batches.storage.database import DatabaseError
from server.batches.storage.lifecycle import StoredBatch
from server.batches.storage.store import Store
from server.batches.window import Window

SWEEP_INTERVAL_S = 60.0

logger = logging.getLogger("tdpipe")


class BatchRunner:
    """Runs the open batches of the store, and new batches, for as long as `run` runs."""

    def __init__(self, store: Store, window: Window, limits: BatchLimits) -> None:
        self.store = store
        self._window = window
        self._limits = limits
        self._locks = BatchLocks()
        self._jobs: dict[str, Job] = {}
        self._group = asyncio.TaskGroup()

    async def run(self) -> None:
        """Run until cancelled; open batches resume at the next start."""
        async with self._group:
            for batch in await self.store.open_batches():
                self.begin(batch)
            while True:
                await self._sweep()
                await asyncio.sleep(SWEEP_INTERVAL_S)

    def begin(self, batch: StoredBatch) -> None:
        """Start or resume a batch after the batches that were begun earlier."""
        if batch.id in self._jobs:
            return
        job = Job(batch.id, self.store, self._window, self._limits, self._locks)
        self._jobs[batch.id] = job
        task = self._group.create_task(job.run())
        task.add_done_callback(lambda _: self._jobs.pop(batch.id))

    @property
    def num_open(self) -> int:
        """How many batches have not ended."""
        return len(self._jobs)

    async def cancel(self, batch_id: str) -> StoredBatch | None:
        """Cancel a batch unless it is too late; return it, or None if there is no such batch."""
        now = int(time.time())
        batch = await self.store.change_batch(batch_id, lambda b: b.cancelling(now))
        if batch is not None and batch.status == "cancelling" and batch_id in self._jobs:
            self._jobs[batch_id].stop()
        return batch

    async def _sweep(self) -> None:
        """Delete expired files at intervals; a failure is retried at the next sweep."""
        try:
            await self.store.delete_expired(int(time.time()))
        except (DatabaseError, OSError) as error:
            logger.error("cannot delete expired files: %s", error)
