"""A router before two real daemons: answers are theirs, and outlive the daemon that began them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.conftest import free_port
from tests.end_to_end.daemon import END_TIMEOUT_S, ROOT, START_TIMEOUT_S, Daemon, all_gone

MODEL = "tdpipe-demo"
TASK, RIGHT = "Count to seven in words.\n", "one two three four five six seven"
LONG: dict[str, Any] = {"model": MODEL, "prompt": TASK, "max_tokens": 120}


class Router:
    """`tdpipe route` before these daemons for the length of a `with` block."""

    def __init__(self, folder: Path, *daemons: Daemon) -> None:
        self._log_path, self.daemons = folder / "router.log", daemons

    def __enter__(self) -> "Router":
        command = [sys.executable, str(ROOT / "tdpipe.py"), "route", "--port", "0"]
        command += ["--instances", ",".join(daemon.url for daemon in self.daemons)]
        command += ["--data-dir", str(self._log_path.parent / "data")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("TDPIPE_")}
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, env=environment)
        self.wait_up(len(self.daemons))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(END_TIMEOUT_S) == 0, self._log_path.read_text()

    @property
    def url(self) -> str:
        """Where it listens; empty before it does."""
        _, _, rest = self._log_path.read_text().partition("listening on ")
        return rest.split(" ")[0]

    def instances(self) -> list[dict[str, Any]]:
        """The state of each daemon."""
        with urllib.request.urlopen(f"{self.url}/instances", timeout=10) as answer:
            shown: list[dict[str, Any]] = json.load(answer)["instances"]
        return shown

    def wait_up(self, number: int) -> None:
        """Until so many daemons take requests."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.url or sum(each["state"] == "up" for each in self.instances()) != number:
            assert time.monotonic() < deadline, self._log_path.read_text()
            time.sleep(0.05)

    def client(self) -> openai.AsyncOpenAI:
        """An official client that does not retry on its own."""
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=300
        )


@pytest.fixture(scope="module")
def router(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Router]:
    """A router, and two daemons that keep their ports when they start again."""
    folder = tmp_path_factory.mktemp("router")
    arguments = ["--dtype", "float32", "--device", "cpu", "--profile-seconds", "0.3"]
    first, second = (
        Daemon(folder / name, *arguments, "--port", str(free_port())) for name in ("one", "two")
    )
    with first, second, Router(folder, first, second) as router:
        yield router


def test_answers_are_those_of_the_daemons(router: Router) -> None:
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
        async with router.client() as routed, router.daemons[0].async_client() as direct:
            return await ask(routed), await ask(direct)

    routed, direct = asyncio.run(both())
    assert routed == direct
    assert routed[0].strip() == RIGHT


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 1, "seed": 7}])
def test_streams_outlive_the_daemon_that_began_them(
    router: Router, sampling: dict[str, Any]
) -> None:
    """They equal undisturbed ones; then the daemon comes back, and takes part again."""
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
    victim = router.daemons[0]
    expected = asyncio.run(read_all())
    progress[0] = 0
    processes = victim.present()
    answers, _ = asyncio.run(read_disturbed())
    assert answers == expected
    assert all_gone(processes, END_TIMEOUT_S)
    with urllib.request.urlopen(f"{router.url}/metrics", timeout=10) as page:
        text = page.read().decode()
    assert 'tdpipe_router_resumptions_total{outcome="resumed"} 0.0' not in text
    victim.process.wait()
    victim.start()
    victim.wait_ready()
    router.wait_up(2)
