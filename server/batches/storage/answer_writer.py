"""The answer writer: takes answers in the event loop and writes them in groups in a thread."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

from server.batches.storage.answers import Answers, LineAnswer
from server.openai.fields.batch import BatchUsage, RequestCounts

Result = TypeVar("Result")


class BatchProgress(NamedTuple):
    """The counts of a batch's answers, and the tokens of these answers."""

    counts: RequestCounts
    usage: BatchUsage


class AnswerWriter:
    """Writes the answers of one batch; a caller waits until its answer is in the file.

    After an `OSError`, a new writer must be opened: only the files show what was written.
    """

    def __init__(self, output: Path, errors: Path) -> None:
        self._paths = output, errors
        # One thread, so that work after an abandoned write still runs after the write.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._unwritten: list[LineAnswer] = []
        self._writing = asyncio.Lock()
        self._answers: Answers | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._call(self._open)
        except BaseException:
            if self._answers is not None:
                self._answers.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(OSError):
            await self.flush()
        await self._call(self.answers.close)
        self._thread.shutdown(wait=False)

    @property
    def answers(self) -> Answers:
        """The answers that are in the files so far."""
        assert self._answers is not None, "only inside the block"
        return self._answers

    async def add(self, *answers: LineAnswer) -> None:
        """Write answers, together with others that are added meanwhile. Raises `OSError`."""
        self._unwritten += answers
        await self.flush()

    async def flush(self) -> None:
        """Write all added answers, also if their callers were cancelled. Raises `OSError`."""
        async with self._writing:
            if self._unwritten:
                group, self._unwritten = self._unwritten, []
                await self._call(lambda: self.answers.append(group))

    async def progress(self, total: int) -> BatchProgress:
        """Return the progress towards `total` requests, after syncing the counted answers.

        Raises `OSError`.
        """

        def count() -> BatchProgress:
            self.answers.sync()
            return BatchProgress(self.answers.counts(total), self.answers.usage())

        return await self._call(count)

    def _open(self) -> None:
        self._answers = Answers(*self._paths)

    async def _call(self, work: Callable[[], Result]) -> Result:
        """Run `work` to its end, even if the caller is cancelled meanwhile.

        The reason is that a group also has answers of other callers, and that the files may be
        opened again only after the group is written.
        """
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait((running,))
            raise
