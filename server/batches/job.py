"""The job: runs one batch from its creation to its end.

The job reads the state of the batch from the store and the batch's files, and can resume the batch
in any state. So a batch continues after the daemon was killed or the disk was full.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from server.batches.storage.answer_writer import AnswerWriter
from server.batches.storage.answers import LineAnswer, not_run
from server.batches.storage.disk_errors import disk_error
from server.batches.storage.lifecycle import Ending, StoredBatch
from server.batches.storage.lines import Rules
from server.batches.storage.store import Store
from server.batches.unanswered import unanswered
from server.batches.validation import BadInputError, Validation
from server.batches.window import Window
from server.openai.fields.batch import BatchError, FileObject, RequestCounts

# How often progress is stored and the answers are synced to disk.
REPORT_INTERVAL_S = 1.0
RETRY_S = 10.0
# Answers of requests that were not run are written in groups of this size.
GROUP_ANSWERS = 256

logger = logging.getLogger("tdpipe")


@dataclass(frozen=True)
class BatchLimits:
    """Limits of a batch and of its lines; `models` returns the names that lines may have."""

    models: Callable[[], Awaitable[Collection[str]]]
    max_line_bytes: int
    max_requests: int


@dataclass(frozen=True)
class BatchLocks:
    """Makes batches validate one at a time and start one at a time, the oldest first.

    A batch starts when all requests of the previous one have been submitted, even if some are not
    answered yet, so that the pipeline does not run empty between batches.
    """

    validation: asyncio.Lock = field(default_factory=asyncio.Lock)
    start: asyncio.Lock = field(default_factory=asyncio.Lock)


class Job:
    """Runs one batch to its end; call `stop` when the status of the batch is `cancelling`."""

    def __init__(
        self, batch_id: str, store: Store, window: Window, limits: BatchLimits, locks: BatchLocks
    ) -> None:
        self._id = batch_id
        self._store = store
        self._window = window
        self._limits = limits
        self._locks = locks
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Abort open requests and start no further ones."""
        self._stopped.set()

    async def run(self) -> None:
        """Run the batch to its end, and retry after failures."""
        while True:
            try:
                await self._run()
            # The outermost handler: after a full disk or a bug, no answers may be lost, and the
            # other batches must continue.
            except Exception as error:
                self._log_failure(error)
                await asyncio.sleep(RETRY_S)
            else:
                return

    def _log_failure(self, error: Exception) -> None:
        cause = disk_error(error)
        if cause is None:
            logger.exception("%s failed and will be retried in %g s", self._id, RETRY_S)
            return
        message = "%s failed and will be retried in %g s; its files are in %s: %s"
        logger.error(message, self._id, RETRY_S, self._store.folder, cause)

    async def _run(self) -> None:
        batch = await self._read()
        if batch.status in ("validating", "in_progress"):
            ending = await self._work_until(batch.expires_at)
            batch = await self._change(lambda b: b.finalizing(ending, _now()))
        if batch.is_open:
            batch = await self._finalize(batch)
        counts = batch.request_counts
        logger.info(
            "%s %s: %d of %d requests succeeded, %d failed",
            *(self._id, batch.status, counts.completed, counts.total, counts.failed),
        )

    async def _work_until(self, expires_at: float) -> Ending:
        """Work until the batch is done, stopped or expired."""
        work = asyncio.create_task(self._work())
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait(
                (work, stopped),
                timeout=max(0.0, expires_at - time.time()),
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            work.cancel()
            stopped.cancel()
            await asyncio.wait((work, stopped))
        if work.cancelled():
            return "cancelled" if self._stopped.is_set() else "expired"
        work.result()
        return "completed"

    async def _work(self) -> None:
        batch = await self._read()
        if batch.status == "validating":
            async with self._locks.validation:
                batch = await self._validate(batch)
        if batch.status == "in_progress":
            with ExitStack() as started:
                await self._locks.start.acquire()
                started.callback(self._locks.start.release)
                await self._answer_all(batch, on_begun=started.close)

    async def _validate(self, batch: StoredBatch) -> StoredBatch:
        models = await self._limits.models()
        rules = Rules({batch.endpoint}, models, self._limits.max_line_bytes)
        path = self._store.content(batch.input_file_id)
        validation = Validation(path, rules, self._limits.max_requests)
        errors: list[BatchError] = []
        async with _alongside(self._report_validation(validation)):
            try:
                await asyncio.to_thread(validation.run)
            except BadInputError as error:
                errors = error.errors
            finally:
                validation.is_cancelled = True
        if errors:
            return await self._change(lambda b: b.failed(errors, _now()))
        return await self._change(lambda b: b.validated(validation.num_requests, _now()))

    async def _answer_all(self, batch: StoredBatch, on_begun: Callable[[], None]) -> None:
        async with self._writer(batch) as writer:
            answered = await asyncio.to_thread(writer.answers.custom_ids.sorted)
            num_in_order = self._window.num_in_order(batch.request_counts.total)
            requests = unanswered(self._store.content(batch.input_file_id), answered, num_in_order)
            async with aclosing(requests), _alongside(self._report(batch, writer)):
                await self._window.run(requests, writer.add, on_begun)

    async def _finalize(self, batch: StoredBatch) -> StoredBatch:
        """Close the files and publish them to the client; idempotent."""
        async with self._writer(batch) as writer:
            if batch.ends_as == "expired" and batch.in_progress_at is not None:
                await self._answer_rest(batch, writer)
            counts, usage = await writer.progress(batch.request_counts.total)
            sizes = writer.answers.sizes()
        now = _now()
        files = _files(batch, sizes, now)
        output, errors = (
            name if any(file.id == name for file in files) else None
            for name in (batch.output_name, batch.error_name)
        )
        ended = await self._change(
            lambda b: b.counted(counts, usage).ended(output, errors, now), *files
        )
        for name in {batch.output_name, batch.error_name} - {output, errors}:
            self._store.content(name).unlink(missing_ok=True)
        return ended

    async def _answer_rest(self, batch: StoredBatch, writer: AnswerWriter) -> None:
        message = "This request could not be executed before the completion window expired."
        answered = await asyncio.to_thread(writer.answers.custom_ids.sorted)
        requests = unanswered(self._store.content(batch.input_file_id), answered)
        group: list[LineAnswer] = []
        async with aclosing(requests):
            async for request in requests:
                group.append(not_run(request.custom_id, "batch_expired", message))
                if len(group) == GROUP_ANSWERS:
                    await writer.add(*group)
                    group.clear()
        await writer.add(*group)

    async def _report_validation(self, validation: Validation) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            counts = RequestCounts(total=validation.num_requests)
            await self._change(partial(StoredBatch.counted, counts=counts))

    async def _report(self, batch: StoredBatch, writer: AnswerWriter) -> None:
        stored = batch.request_counts
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            counts, usage = await writer.progress(batch.request_counts.total)
            if counts != stored:
                await self._change(partial(StoredBatch.counted, counts=counts, usage=usage))
            stored = counts

    def _writer(self, batch: StoredBatch) -> AnswerWriter:
        content = self._store.content
        return AnswerWriter(content(batch.output_name), content(batch.error_name))

    async def _read(self) -> StoredBatch:
        batch = await self._store.batch(self._id)
        assert batch is not None, "batches are never deleted"
        return batch

    async def _change(
        self, change: Callable[[StoredBatch], StoredBatch], *files: FileObject
    ) -> StoredBatch:
        batch = await self._store.change_batch(self._id, change, files)
        assert batch is not None, "batches are never deleted"
        return batch


@asynccontextmanager
async def _alongside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` during the block, and cancel the block if `work` fails."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(work)
        try:
            yield
        finally:
            task.cancel()


def _files(batch: StoredBatch, sizes: tuple[int, int], now: int) -> list[FileObject]:
    """Return the answer files that are not empty."""
    lifetime_s, names = batch.output_expires_s, (batch.output_name, batch.error_name)
    return [
        FileObject(
            id=name,
            bytes=num_bytes,
            created_at=now,
            expires_at=None if lifetime_s is None else now + lifetime_s,
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
        )
        for name, kind, num_bytes in zip(names, ("output", "error"), sizes, strict=True)
        if num_bytes
    ]


def _now() -> int:
    return int(time.time())
