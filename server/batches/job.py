"""The job: one batch on its way from its creation to its end.

It can be taken up at every point of its way, and begins each time with what the store and the files
say. That is how it goes on after a kill, and after a disk that was full.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from server.batches.storage.answer_writer import AnswerWriter
from server.batches.storage.answers import LineAnswer, not_run
from server.batches.storage.lifecycle import Ending, StoredBatch
from server.batches.storage.lines import Rules
from server.batches.storage.store import Store
from server.batches.unanswered import unanswered
from server.batches.validation import BadInputError, Validation
from server.batches.window import Window
from server.openai.fields.batch import BatchError, FileObject, RequestCounts

# How often what was done is told, and made to outlive the machine's power.
REPORT_INTERVAL_S = 1.0
RETRY_S = 10.0
# Answers that are written together where none of them is waited for.
GROUP_ANSWERS = 256

logger = logging.getLogger("tdpipe")


@dataclass(frozen=True)
class BatchLimits:
    """What batches may be."""

    models: frozenset[str]
    max_line_bytes: int
    max_requests: int


@dataclass(frozen=True)
class Turns:
    """Batches are validated one after another, and begun one after another, the oldest first.

    The next one begins when the last request of the one before is open, not when it is answered:
    the pipeline does not run empty in between.
    """

    validating: asyncio.Lock = field(default_factory=asyncio.Lock)
    beginning: asyncio.Lock = field(default_factory=asyncio.Lock)


class Job:
    """Brings one batch to its end; `stop` when its status has become cancelling."""

    def __init__(
        self, batch_id: str, store: Store, window: Window, limits: BatchLimits, turns: Turns
    ) -> None:
        self._id = batch_id
        self._store = store
        self._window = window
        self._limits = limits
        self._turns = turns
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Abort what is open and run no more of it."""
        self._stopped.set()

    async def run(self) -> None:
        """To its end, whatever comes in between."""
        while True:
            try:
                await self._run()
            # The edge: neither a full disk nor a bug may cost what is done, or other batches.
            except Exception:
                logger.exception("%s stumbled and is taken up again in %g s", self._id, RETRY_S)
                await asyncio.sleep(RETRY_S)
            else:
                return

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
        """Work until all is done, it is stopped, or its time is over."""
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
            async with self._turns.validating:
                batch = await self._validate(batch)
        if batch.status == "in_progress":
            with ExitStack() as turn:
                await self._turns.beginning.acquire()
                turn.callback(self._turns.beginning.release)
                await self._answer_all(batch, on_begun=turn.close)

    async def _validate(self, batch: StoredBatch) -> StoredBatch:
        rules = Rules({batch.endpoint}, self._limits.models, self._limits.max_line_bytes)
        path = self._store.content(batch.input_file_id)
        validation = Validation(path, rules, self._limits.max_requests)
        errors: list[BatchError] = []
        async with _alongside(self._report_validation(validation)):
            try:
                await asyncio.to_thread(validation.run)
            except BadInputError as error:
                errors = error.errors
            finally:
                validation.is_given_up = True
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
        """Close the files and show them to the client; done twice, it is as done once."""
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
        told = batch.request_counts
        while True:
            await asyncio.sleep(REPORT_INTERVAL_S)
            counts, usage = await writer.progress(batch.request_counts.total)
            if counts != told:
                await self._change(partial(StoredBatch.counted, counts=counts, usage=usage))
            told = counts

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
async def _alongside(chore: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a chore for the length of the block; a chore that fails ends the block."""
    async with asyncio.TaskGroup() as group:
        task = group.create_task(chore)
        try:
            yield
        finally:
            task.cancel()


def _files(batch: StoredBatch, sizes: tuple[int, int], now: int) -> list[FileObject]:
    """The files of answers that are not empty."""
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
