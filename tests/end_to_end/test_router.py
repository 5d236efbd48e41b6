"""A router before two real daemons: answers are theirs, and outlive the daemon that began them."""

import asyncio
from collections.abc import Iterator
from typing import Any, NamedTuple

import openai
import pytest

from tests.end_to_end.conftest import free_port
from tests.end_to_end.daemon import END_TIMEOUT_S, Daemon, all_gone
from tests.end_to_end.router import Router, instances_of

MODEL = "tdpipe-demo"
TASK, RIGHT = "Count to seven in words.\n", "one two three four five six seven"
LONG: dict[str, Any] = {"model": MODEL, "prompt": TASK, "max_tokens": 120}


class World(NamedTuple):
    """A router and its daemons."""

    router: Router
    daemons: tuple[Daemon, Daemon]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A router, and two daemons that keep their ports when they start again."""
    folder = tmp_path_factory.mktemp("router")
    arguments = ["--dtype", "float32", "--device", "cpu", "--profile-seconds", "0.3"]
    first, second = (
        Daemon(folder / name, *arguments, "--port", str(free_port())) for name in ("one", "two")
    )
    with first, second:
        instances = instances_of(first.url, second.url)
        with Router(folder, *instances, num_instances=2) as router:
            yield World(router, (first, second))


def test_answers_are_those_of_the_daemons(world: World) -> None:
    async def ask(client: openai.AsyncOpenAI) -> list[Any]:
        chat: Any = {"model": MODEL, "messages": [{"role": "user", "content": TASK}]}
        completion = await client.completions.create(
            model=MODEL, prompt=TASK, max_tokens=30, temperature=0
        )
        message = await client.chat.completions.create(**chat, temperature=0)
        stream = await client.chat.completions.create(**chat, temperature=0, stream=True)
        streamed = [part.choices[0].delta.content or "" async for part in stream if part.choices]
        response = await client.responses.create(model=MODEL, input=TASK, temperature=0)
        return [
            completion.choices[0].text,
            message.choices[0].message.content,
            "".join(streamed),
            response.output_text,
            [model.id async for model in client.models.list()],
        ]

    async def both() -> tuple[list[Any], list[Any]]:
        async with world.router.client() as routed, world.daemons[0].async_client() as direct:
            return await ask(routed), await ask(direct)

    routed, direct = asyncio.run(both())
    assert routed == direct
    assert routed[0].strip() == RIGHT


@pytest.mark.parametrize(
    "sampling",
    [pytest.param({"temperature": 0}, marks=pytest.mark.long), {"temperature": 1, "seed": 7}],
)
def test_streams_outlive_the_daemon_that_began_them(world: World, sampling: dict[str, Any]) -> None:
    """They equal undisturbed ones; then the daemon comes back, and takes part again."""
    router, victim = world.router, world.daemons[0]
    router.wait_up(2)
    bodies = [LONG | sampling | {"n": 1 + i % 2, "prompt": TASK * (1 + i)} for i in range(6)]

    async def read(client: openai.AsyncOpenAI, body: dict[str, Any]) -> dict[int, str]:
        texts: dict[int, str] = {}
        stream = await client.completions.create(
            **body, stream=True, extra_body={"ignore_eos": True}
        )
        async for part in stream:
            for choice in part.choices:
                texts[choice.index] = texts.get(choice.index, "") + choice.text
                progress[0] += 1
        return texts

    async def read_all() -> list[dict[int, str]]:
        async with router.client() as client:
            return await asyncio.gather(*(read(client, body) for body in bodies))

    async def read_disturbed() -> tuple[list[dict[int, str]], int]:
        reading = asyncio.create_task(read_all())
        while progress[0] < 30:
            await asyncio.sleep(0.001)
        victim.process.kill()
        return await reading, progress[0]

    progress = [0]
    expected = asyncio.run(read_all())
    progress[0] = 0
    processes = victim.present()
    answers, _ = asyncio.run(read_disturbed())
    assert answers == expected
    assert all_gone(processes, END_TIMEOUT_S)
    assert 'tdpipe_router_resumptions_total{outcome="resumed"} 0.0' not in router.metrics()
    victim.process.wait()
    victim.start()
    victim.wait_ready()
    router.wait_up(2)
