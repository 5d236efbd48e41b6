"""The offline engine: engine and stages without HTTP, for as long as an `async with` block lasts.

    this process --+-- engine    python -m engine          the scheduler
                   +-- stages    python -m workers         torchrun and one process per stage
                   +-- predictor python -m predictor       the encoder, where one predicts lengths

They are the daemon's own processes, with the same restarts and the same end.
"""

import asyncio
import os
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from configs.schema import Config
from daemon.checkpoint import check_model_path
from daemon.children import POLL_INTERVAL_S, Children, GivingUpError
from daemon.runtime_folder import FolderTakenError, runtime_folder
from server.endpoints import Endpoints, build_endpoints
from server.lengths.length_predictor import LengthPredictor, PredictorMismatchError, check_predictor
from server.metrics import Metrics
from server.requests.engine_client import EngineClient
from server.requests.engine_metrics import EngineCollector
from server.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer

Result = TypeVar("Result")


class OfflineEngineError(Exception):
    """The engine cannot start or go on; the text is one line for the user."""


class OfflineEngine:
    """Inside `async with`, requests are worked on; after it, no process is left.

    The loop's thread must last as long as the block, see `Children`.
    """

    client: EngineClient
    tokenizer: Tokenizer
    metrics: Metrics
    predictor: LengthPredictor

    def __init__(self, config: Config) -> None:
        self.config = config
        self._stack = AsyncExitStack()
        self._chores: list[asyncio.Task[None]] = []  # none of them ends by itself but in failure

    async def __aenter__(self) -> Self:
        """Start, and wait until requests are worked on. Raises `OfflineEngineError`."""
        problem = check_model_path(self.config.model)
        if problem is not None:
            raise OfflineEngineError(problem)
        async with self._stack as stack:
            try:
                self.config = stack.enter_context(runtime_folder(self.config))
            except FolderTakenError as error:
                raise OfflineEngineError(str(error)) from error
            await self._start(stack)
            await self.run(self._wait_ready())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Abort what is open, end every process and wait for it."""
        await self._stack.aclose()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """The result of `work`; cancels it and raises `OfflineEngineError` if the engine gives up.

        A lost engine or stage that is restarted is no such end: its requests wait for it.
        """
        assert self._chores, "only inside the block"
        working = asyncio.ensure_future(work)
        try:
            await asyncio.wait((working, *self._chores), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                for chore in self._chores:
                    if chore.done():
                        chore.result()
        finally:
            working.cancel()
            await asyncio.wait((working,))
        return working.result()

    def endpoints(self) -> Endpoints:
        """The daemon's own endpoints on this engine, for as long as the block lasts.

        Raises `ChatTemplateError` when the file with the chat template cannot be used.
        """
        endpoints = build_endpoints(
            self.config, self.client, self.tokenizer, self.metrics, self.predictor
        )
        self._stack.callback(endpoints.close)
        return endpoints

    async def _start(self, stack: AsyncExitStack) -> None:
        # They are forked from here, where tokenizers may have used threads before.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        children = Children(self.config, ("engine", "stages"))
        # Ending them waits for them: not on the loop, where the client has its last words.
        stack.push_async_callback(asyncio.to_thread, children.stop)
        children.start()
        self.client = EngineClient(
            self.config.server_address,
            patience_s=self.config.stage_start_timeout,
            secret=self.config.secret,
        )
        self.metrics = Metrics(EngineCollector(self.client))
        self.predictor = LengthPredictor(self.config, self.metrics)
        for chore in (_watch(children), self.client.run(), self.predictor.run()):
            task = asyncio.create_task(chore)
            stack.push_async_callback(_end, task)
            self._chores.append(task)

    async def _wait_ready(self) -> None:
        """The tokenizer is loaded while the stages load their weights."""
        try:
            self.tokenizer = await asyncio.to_thread(load_tokenizer, self.config)
            check_predictor(self.config, self.tokenizer)
        except (TokenizerError, PredictorMismatchError) as error:
            raise OfflineEngineError(str(error)) from error
        await self.client.wait_ready()


async def _watch(children: Children) -> None:
    """Restart what dies. Raises `OfflineEngineError` when that no longer helps."""
    while True:
        try:
            children.look()
        except GivingUpError as error:
            raise OfflineEngineError(str(error)) from error
        await asyncio.sleep(POLL_INTERVAL_S)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel it and wait; how it failed was for `OfflineEngine.run` to tell."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
