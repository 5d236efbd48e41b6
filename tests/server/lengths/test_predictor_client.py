"""The predictor client: bounded, and nothing is owed to it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.lengths import predictor_client
from server.lengths.predictor_client import MAX_OPEN_PROMPTS, PredictorClient
from wire.predictor_messages import Answer, Ask
from wire.sockets import Hub


def nobody(_answer: Answer, _seconds: float) -> None:
    """Takes an answer that never comes."""


async def connection(client: PredictorClient) -> None:
    """Until it has found its predictor."""
    async with asyncio.timeout(10):
        while (question := client.ask((), nobody)) is None:
            await asyncio.sleep(0.005)
    client.forget(question)


@contextmanager
def running(client: PredictorClient) -> Iterator[asyncio.Task[None]]:
    """Its receiving task, which must end by itself once it is cancelled."""
    task = asyncio.create_task(client.run())
    try:
        yield task
    finally:
        task.cancel()


def test_too_much_is_not_asked(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/predictor.sock"

    async def run() -> None:
        client = PredictorClient(endpoint)
        with running(client) as task, Hub[Ask](endpoint, Ask):
            await connection(client)
            assert client.ask(("x",) * (MAX_OPEN_PROMPTS - 1), nobody) is not None
            last = client.ask(("x",), nobody)
            assert last is not None
            assert client.ask(("x",), nobody) is None
            client.forget(last)
            client.forget(last)
            assert client.num_open_prompts == MAX_OPEN_PROMPTS - 1
            assert client.ask(("x",), nobody) is not None
        await asyncio.wait([task])

    asyncio.run(run())


def test_what_is_never_answered_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictor_client, "PATIENCE_S", 0.0)
    monkeypatch.setattr(predictor_client, "SWEEP_S", 0.01)
    endpoint = f"ipc://{tmp_path}/predictor.sock"

    async def run() -> None:
        client = PredictorClient(endpoint)
        with running(client) as task, Hub[Ask](endpoint, Ask):
            await connection(client)
            client.ask(("x",) * 5, nobody)
            assert client.num_open_prompts == 5
            async with asyncio.timeout(10):
                while client.num_open_prompts:
                    await asyncio.sleep(0.005)
        await asyncio.wait([task])

    asyncio.run(run())


def test_nothing_is_kept_for_a_predictor_that_is_not_there(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/predictor.sock"
    asked: list[Ask] = []

    async def run() -> None:
        client = PredictorClient(endpoint)
        with running(client) as task:
            for _ in range(2):
                assert client.ask(("gone",), nobody) is None
                assert client.num_open_prompts == 0
                with Hub[Ask](endpoint, Ask) as hub:
                    await connection(client)
                    question = client.ask(("there",), nobody)
                    assert question is not None
                    client.forget(question)
                    async with asyncio.timeout(10):
                        while len(asked) < 2:
                            asked.extend(ask for _, ask in hub.drain())
                            await asyncio.sleep(0.005)
                assert [ask.prompts for ask in asked] == [(), ("there",)]
                asked.clear()
                async with asyncio.timeout(10):
                    while (question := client.ask(("gone",), nobody)) is not None:
                        client.forget(question)
                        await asyncio.sleep(0.005)
        await asyncio.wait([task])

    asyncio.run(run())


def test_an_answer_reaches_who_asked_and_nobody_else(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/predictor.sock"
    answers: list[str] = []

    async def run() -> None:
        client = PredictorClient(endpoint)
        with running(client) as task:
            await connection(client)
            first = client.ask(("a",), lambda *_: answers.append("first"))
            client.ask(("b",), lambda *_: answers.append("second"))
            client.ask(("c",), lambda *_: answers.append("third"))
            assert first is not None
            client.forget(first)
            asked: list[Ask] = []
            async with asyncio.timeout(10):
                while len(asked) < 3:
                    asked += [ask for _, ask in hub.drain() if ask.prompts]
                    await asyncio.sleep(0.005)
                for ask in asked:
                    hub.send("server", Answer(ask.request_id, (0,), (1,), (0.1,)))
                while len(answers) < 2:
                    await asyncio.sleep(0.005)
            assert client.num_open_prompts == 0
        await asyncio.wait([task])

    with Hub[Ask](endpoint, Ask) as hub:
        asyncio.run(run())
    assert answers == ["second", "third"]
