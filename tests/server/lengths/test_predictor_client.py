"""The predictor client: limited questions, and nothing kept for a predictor that is gone."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.lengths import predictor_client
from server.lengths.predictor_client import MAX_OPEN_PROMPTS, PredictorClient
from wire.predictor_messages import Answer, Ask
from wire.sockets import Hub


def ignore(_answer: Answer, _seconds: float) -> None:
    """Ignore an answer."""


async def connection(client: PredictorClient) -> None:
    """Ask until the predictor is connected."""
    async with asyncio.timeout(10):
        while (question := client.ask((), ignore)) is None:
            await asyncio.sleep(0.005)
    client.forget(question)


@contextmanager
def running(client: PredictorClient) -> Iterator[asyncio.Task[None]]:
    """Its receiving task, which must end when it is cancelled."""
    task = asyncio.create_task(client.run())
    try:
        yield task
    finally:
        task.cancel()


def test_the_number_of_open_prompts_is_limited(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/predictor.sock"

    async def run() -> None:
        client = PredictorClient(endpoint)
        with running(client) as task, Hub[Ask](endpoint, Ask):
            await connection(client)
            assert client.ask(("x",) * (MAX_OPEN_PROMPTS - 1), ignore) is not None
            last = client.ask(("x",), ignore)
            assert last is not None
            assert client.ask(("x",), ignore) is None
            client.forget(last)
            client.forget(last)
            assert client.num_open_prompts == MAX_OPEN_PROMPTS - 1
            assert client.ask(("x",), ignore) is not None
        await asyncio.wait([task])

    asyncio.run(run())


def test_an_unanswered_question_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_client, "QUESTION_TIMEOUT_S", 0.0)
    monkeypatch.setattr(predictor_client, "SWEEP_S", 0.01)
    endpoint = f"ipc://{tmp_path}/predictor.sock"

    async def run() -> None:
        client = PredictorClient(endpoint)
        with running(client) as task, Hub[Ask](endpoint, Ask):
            await connection(client)
            client.ask(("x",) * 5, ignore)
            assert client.num_open_prompts == 5
            async with asyncio.timeout(10):
                while client.num_open_prompts:
                    await asyncio.sleep(0.005)
        await asyncio.wait([task])

    asyncio.run(run())


def test_nothing_is_kept_for_an_absent_predictor(tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/predictor.sock"
    asked: list[Ask] = []

    async def run() -> None:
        client = PredictorClient(endpoint)
        with running(client) as task:
            for _ in range(2):
                assert client.ask(("gone",), ignore) is None
                assert client.num_open_prompts == 0
                with Hub[Ask](endpoint, Ask) as hub:
                    await connection(client)
                    question = client.ask(("there",), ignore)
                    assert question is not None
                    client.forget(question)
                    async with asyncio.timeout(10):
                        while len(asked) < 2:
                            asked.extend(ask for _, ask in hub.drain())
                            await asyncio.sleep(0.005)
                assert [ask.prompts for ask in asked] == [(), ("there",)]
                asked.clear()
                async with asyncio.timeout(10):
                    while (question := client.ask(("gone",), ignore)) is not None:
                        client.forget(question)
                        await asyncio.sleep(0.005)
        await asyncio.wait([task])

    asyncio.run(run())


def test_an_answer_reaches_its_asker_and_no_other(tmp_path: Path) -> None:
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
