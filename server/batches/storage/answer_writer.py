"""The answer writer: answers from the event loop to their files, in groups and in one thread."""

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
    """What is answered, and the tokens of just that."""

    counts: RequestCounts
    usage: BatchUsage


class AnswerWriter:
    """The answers of one batch; a caller waits until its answer is in the file.

    After an `OSError`, open another: what is written then is known from the files alone.
    """

    def __init__(self, output: Path, errors: Path) -> None:
        self._paths = output, errors
        # One thread: what follows a write that nobody waits for any more still comes after it.
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
        """What is in the files."""
        assert self._answers is not None, "only inside the block"
        return self._answers

    async def add(self, *answers: LineAnswer) -> None:
        """Write them, together with those that come meanwhile. Raises `OSError`."""
        self._unwritten += answers
        await self.flush()

    async def flush(self) -> None:
        """Write what has been added by callers that were cancelled, too. Raises `OSError`."""
        async with self._writing:
            if self._unwritten:
                group, self._unwritten = self._unwritten, []
                await self._call(lambda: self.answers.append(group))

    async def progress(self, total: int) -> BatchProgress:
        """How far it is of so many; what is counted outlives the machine's power.

        Raises `OSError`.
        """

        def count() -> BatchProgress:
            self.answers.sync()
            return BatchProgress(self.answers.counts(total), self.answers.usage())

        return await self._call(count)

    def _open(self) -> None:
        self._answers = Answers(*self._paths)

    async def _call(self, work: Callable[[], Result]) -> Result:
        """Run it to its end, also when the caller is cancelled meanwhile.

        A group has the answers of others too, and whoever opens the files next must be alone.
        """
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait((running,))
            raise
