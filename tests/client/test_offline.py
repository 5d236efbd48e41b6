"""The offline engine ends what its callers have left running."""

import asyncio

import pytest

from client.offline import OfflineEngine, OfflineEngineError
from configs.config import Config


def test_leaving_the_engine_cancels_work_without_a_caller() -> None:
    async def leave() -> None:
        engine = OfflineEngine(Config())
        service = asyncio.create_task(asyncio.sleep(3600))
        engine._tasks = [service]  # type: ignore[list-item]
        # A caller that a signal interrupts before it has the future cannot cancel it.
        work = asyncio.create_task(engine.run(asyncio.sleep(3600)))
        await asyncio.sleep(0)
        await engine.__aexit__(None, None, None)
        with pytest.raises(asyncio.CancelledError):
            await work
        service.cancel()

    asyncio.run(asyncio.wait_for(leave(), 10))


def test_a_node_without_the_engine_runs_no_requests() -> None:
    config = Config.of(nnodes=2, node_rank=1, headless=True, cluster_secret="x" * 16)

    async def start() -> None:
        async with OfflineEngine(config):
            pass

    with pytest.raises(
        OfflineEngineError, match=r"start the others with `tdpipe serve --headless`"
    ):
        asyncio.run(start())
