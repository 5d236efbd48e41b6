"""GET /pipeline/status: the stream of figures for the page at `/` and for `tdpipe top`."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import msgspec
from fastapi import APIRouter
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from configs.config import Config
from daemon.version import VERSION
from server.http.connection import run_while_connected
from server.http.drain import Drain
from server.http.errors import too_busy
from server.metrics import Metrics
from server.page.history import History
from server.page.step_history import StepHistory
from server.requests.engine_client import EngineClient
from wire.pipeline_status import PipelineStatus

PATH = "/pipeline/status"
MAX_VIEWERS = 8
# Between two statuses: as often as the stages report, and rarely while there is nothing to see.
BUSY_PAUSE_S, IDLE_PAUSE_S = 0.25, 1.0
# After the first status: the engine has answered by then.
FIRST_PAUSE_S = 0.05
_HEADERS = [
    (b"content-type", b"application/jsonl"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]

_encode = msgspec.json.Encoder().encode


class PipelineStatuses:
    """The streams of all viewers. Without viewers, the engine is asked for nothing."""

    def __init__(
        self, config: Config, client: EngineClient, drain: Drain, metrics: Metrics
    ) -> None:
        self._config, self._client, self._drain = config, client, drain
        self._history = History(client, drain, metrics)
        self._steps = StepHistory(client)
        self._viewers: list[asyncio.Event] = []
        drain.listeners.append(self._wake)

    def router(self) -> APIRouter:
        """The route, which has no place in the API's document: its answer has no end."""
        router = APIRouter()
        router.add_api_route(PATH, self.follow, include_in_schema=False)
        return router

    @property
    def num_viewers(self) -> int:
        """How many watch now."""
        return len(self._viewers)

    async def follow(self) -> Response:
        """Statuses as JSON lines, until the client leaves or the daemon has drained."""
        if self.num_viewers >= MAX_VIEWERS:
            message = f"Too many viewers: {MAX_VIEWERS} may watch the pipeline at one time."
            raise too_busy(message, "too_many_viewers")
        return _Stream(self)

    async def write(self, send: Send) -> None:
        """Write one stream; a slow reader gets fewer statuses, and misses nothing."""
        sampled_at, num_batches, pause_s = float("-inf"), 0, FIRST_PAUSE_S
        with self._watching() as woken:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            while not self._drain.has_ended:
                woken.clear()
                self._history.sample_in_silence()
                self._steps.ask()
                status = self._status(sampled_at, num_batches)
                await send(
                    {
                        "type": "http.response.body",
                        "body": _encode(status) + b"\n",
                        "more_body": True,
                    }
                )
                if status.samples:
                    sampled_at = status.samples[-1].at
                num_batches = self._steps.newest
                # Not wait_for, which in Python 3.11 loses a cancellation that meets an event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await woken.wait()
                pause_s = IDLE_PAUSE_S if is_idle(status) else BUSY_PAUSE_S
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @contextmanager
    def _watching(self) -> Iterator[asyncio.Event]:
        """An event that is set when the drain begins or ends."""
        woken = asyncio.Event()
        self._viewers.append(woken)
        try:
            yield woken
        finally:
            self._viewers.remove(woken)
            if not self._viewers:
                self._steps.forget()

    def _status(self, sampled_at: float, num_batches: int) -> PipelineStatus:
        history, client, config = self._history, self._client, self._config
        ready, stats = client.ready, client.stats
        samples = history.samples_after(sampled_at)
        return PipelineStatus(
            at=history.samples[-1].at,
            models=tuple(config.model.names),
            version=VERSION,
            policy=config.scheduler.policy,
            state=history.state,
            num_stages=config.pipeline.pipeline_parallel_size,
            reason=history.reason,
            exact_times=all(stage.has_exact_times for stage in (stats.stages if stats else ())),
            kv_tokens=ready.num_blocks * ready.block_size if ready else 0,
            stages=history.stages(),
            first_token_s=history.first_token_s(),
            per_token_s=history.per_token_s(),
            switches=stats.switches if stats else 0,
            preemptions=stats.preemptions if stats else 0,
            restarts=stats.restarts if stats else 0,
            samples=samples,
            steps=self._steps.after(num_batches),
        )

    def _wake(self) -> None:
        for woken in self._viewers:
            woken.set()


def is_idle(status: PipelineStatus) -> bool:
    """Whether nothing has happened lately."""
    if status.state != "ready" or status.steps.stages:
        return False
    return not any(each.waiting or each.live or each.queued for each in status.samples)


class _Stream(Response):
    """The response of one viewer."""

    def __init__(self, statuses: PipelineStatuses) -> None:
        super().__init__()
        self._statuses = statuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the client disconnects."""
        assert scope["type"] == "http"
        await run_while_connected(self._statuses.write(send), receive)
