"""The offline engine: engine and stages without HTTP, inside an `async with` block.

    this process --+-- engine    python -m engine          the scheduler
                   +-- stages    python -m workers         torchrun and one process per stage
                   +-- predictor python -m predictor       the encoder, if one predicts lengths

These are the same processes as in the daemon, with the same restarts and the same shutdown. With
`nnodes`, this is the first node; the others are headless daemons.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from configs.config import Config
from daemon.checkpoint.resolution import resolve
from daemon.host.meeting_point import check_node
from daemon.restarts import POLL_INTERVAL_S, Children, GivingUpError
from daemon.runtime_folder import runtime_folder
from daemon.start_checks import check_start
from daemon.start_error import StartError
from server.endpoints import Endpoints, build_endpoints
from server.lengths.length_predictor import LengthPredictor, PredictorMismatchError, check_predictor
from server.metrics import Metrics
from server.requests.engine_client import EngineClient
from server.requests.monitoring.engine_metrics import EngineCollector
from server.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer

Result = TypeVar("Result")


class OfflineEngineError(Exception):
    """The engine cannot start or continue; the message is one line for the user."""


class OfflineEngine:
    """Runs requests inside an `async with` block; after it, no process is left.

    The event loop's thread must outlive the block, see `Children`.
    """

    client: EngineClient
    tokenizer: Tokenizer
    metrics: Metrics
    predictor: LengthPredictor

    def __init__(self, config: Config) -> None:
        self.config = config
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []  # each ends only if it fails or is cancelled
        self._working: set[asyncio.Future[Any]] = set()

    async def __aenter__(self) -> Self:
        """Start, and wait until the engine is ready. Raises `OfflineEngineError`."""
        self.config = await self._resolve()
        async with self._stack as stack:
            try:
                self.config = stack.enter_context(runtime_folder(self.config))
            except StartError as error:
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
        """Abort open requests, end every process and wait for it."""
        # A caller that is interrupted while it hands its work over cannot cancel it.
        for working in self._working:
            working.cancel()
        if self._working:
            await asyncio.wait(self._working)
        await self._stack.aclose()

    async def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run `work`, and return its result.

        If the engine fails permanently, `work` is cancelled and `OfflineEngineError` is raised. If
        an engine or stage is restarted, requests wait for it.
        """
        assert self._tasks, "only inside the block"
        working = asyncio.ensure_future(work)
        self._working.add(working)
        try:
            await asyncio.wait((working, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                for task in self._tasks:
                    if task.done():
                        task.result()
        finally:
            self._working.discard(working)
            working.cancel()
            await asyncio.wait((working,))
        return working.result()

    def endpoints(self) -> Endpoints:
        """Build the daemon's endpoints for this engine, which are valid until the block ends.

        Raises `ChatTemplateError` if the file with the chat template cannot be used, and
        `OfflineEngineError` if the model's sampling defaults cannot.
        """
        try:
            endpoints = build_endpoints(
                self.config, self.client, self.tokenizer, self.metrics, self.predictor
            )
        except TokenizerError as error:
            raise OfflineEngineError(str(error)) from error
        self._stack.callback(endpoints.close)
        return endpoints

    async def _resolve(self) -> Config:
        """Find the checkpoint, or make it from a GGUF file. Raises `OfflineEngineError`."""
        if self.config.nodes.headless:
            raise OfflineEngineError(
                "headless: requests are run on the first node (node_rank 0); start the others with "
                "`tdpipe serve --headless`"
            )
        stop = threading.Event()
        try:
            check_start(self.config, serves=False)
            check_node(self.config)
            return await asyncio.to_thread(resolve, self.config, stop)
        except StartError as error:
            raise OfflineEngineError(str(error)) from error
        finally:
            stop.set()

    async def _start(self, stack: AsyncExitStack) -> None:
        # The processes are forked here, and tokenizers may have used threads in this process.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        children = Children(
            self.config.pipeline,
            self.config.predictor,
            self.config.runtime.folder,
            ("engine", "stages"),
        )
        # Not on the event loop: stopping waits for the processes, and the client still has to send
        # messages meanwhile.
        stack.push_async_callback(asyncio.to_thread, children.stop)
        children.start()
        self.client = EngineClient(
            self.config.runtime.server_address,
            patience_s=self.config.pipeline.stage_start_timeout,
            secret=self.config.runtime.secret,
        )
        self.metrics = Metrics(EngineCollector(self.client), model_name=self.config.model.name)
        self.predictor = LengthPredictor(
            self.config.predictor, self.config.runtime, self.config.model.name, self.metrics
        )
        for work in (_watch(children), self.client.run(), self.predictor.run()):
            task = asyncio.create_task(work)
            stack.push_async_callback(_end, task)
            self._tasks.append(task)

    async def _wait_ready(self) -> None:
        """Load the tokenizer while the stages load their weights, then wait for the engine."""
        try:
            self.tokenizer = await asyncio.to_thread(load_tokenizer, self.config.model)
            check_predictor(self.config.predictor, self.config.model, self.tokenizer)
        except (TokenizerError, PredictorMismatchError) as error:
            raise OfflineEngineError(str(error)) from error
        await self.client.wait_ready()


async def _watch(children: Children) -> None:
    """Restart dead processes. Raises `OfflineEngineError` if the restart limit is reached."""
    while True:
        try:
            children.look()
        except GivingUpError as error:
            raise OfflineEngineError(str(error)) from error
        await asyncio.sleep(POLL_INTERVAL_S)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for it; `OfflineEngine.run` raises its error, if any."""
    task.cancel()
    await asyncio.wait((task,))
    if not task.cancelled():
        task.exception()
