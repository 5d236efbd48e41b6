"""Running an actuator in a test: its reports, and servers in the test's own event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.types import ASGIApp

from router.actuators.actuator import Actuator
from server.http.listener import listen

PATIENCE_S = 30.0


async def until(condition: Callable[[], bool]) -> None:
    """Poll until true; fails when it is not in time."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


class Reports:
    """What an actuator has reported: `history` in order, and what is there now."""

    def __init__(self) -> None:
        self.history: list[tuple[str, str]] = []
        self.present: list[str] = []

    def joined(self, name: str) -> None:
        """An instance has come."""
        self.history.append(("joined", name))
        if name not in self.present:
            self.present.append(name)

    def gone(self, name: str) -> None:
        """An instance has left."""
        self.history.append(("gone", name))
        self.present.remove(name)

    async def until_number(self, number: int) -> None:
        """Wait until so many are there."""
        await until(lambda: len(self.present) == number)


@asynccontextmanager
async def running(actuator: Actuator) -> AsyncIterator[Reports]:
    """The actuator runs during the block, and is closed after it; `run` must then end."""
    reports = Reports()
    task = asyncio.create_task(actuator.run(reports.joined, reports.gone))
    try:
        await asyncio.sleep(0)  # it has begun
        yield reports
        if task.done():
            await task
    finally:
        await actuator.close()
        async with asyncio.timeout(PATIENCE_S):
            await task


@asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[str]:
    """The app on a free port; yields its URL."""
    socket = listen("127.0.0.1", 0)
    config = uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
    task = asyncio.create_task(server.serve([socket]))
    try:
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        socket.close()
