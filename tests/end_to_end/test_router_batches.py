"""A batch of a router before two real daemons: each line is answered once, whatever is killed."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.end_to_end.conftest import free_port
from tests.end_to_end.daemon import END_TIMEOUT_S, Daemon, all_gone
from tests.end_to_end.router import Router, instances_of

MODEL = "tdpipe-demo"
NUM_LINES, NUM_TOKENS = 80, 40
BATCH_TIMEOUT_S = 300.0


def body_of(number: int) -> dict[str, Any]:
    """The request of a line: greedy, or with a seed."""
    sampling = {"temperature": 0} if number % 2 else {"temperature": 1, "seed": number}
    prompt = f"Count to {number} in words.\n"
    length = {"max_tokens": NUM_TOKENS, "ignore_eos": True}
    return {"model": MODEL, "prompt": prompt} | length | sampling


def content() -> bytes:
    """The input file."""
    line = {"method": "POST", "url": "/v1/completions"}
    lines = [line | {"custom_id": f"r{i}", "body": body_of(i)} for i in range(NUM_LINES)]
    return b"".join(json.dumps(each).encode() + b"\n" for each in lines)


def undisturbed(daemon: Daemon) -> dict[str, str]:
    """The texts of all lines, as the daemon answers them."""

    async def ask() -> list[str]:
        async with daemon.async_client() as client:

            async def text_of(number: int) -> str:
                fields = body_of(number)
                extra = {"ignore_eos": fields.pop("ignore_eos")}
                answer = await client.completions.create(**fields, extra_body=extra)
                return answer.choices[0].text

            return await asyncio.gather(*map(text_of, range(NUM_LINES)))

    return {f"r{i}": text for i, text in enumerate(asyncio.run(ask()))}


def num_written(folder: Path) -> int:
    """The answers on disk."""
    files = (folder / "router-data" / "router" / "files").iterdir()
    return sum(path.read_bytes().count(b'{"id":"batch_req_') for path in files)


def wait_until(condition: Callable[[], bool]) -> None:
    """Poll until true."""
    deadline = time.monotonic() + BATCH_TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons that keep their ports when they start again."""
    arguments = ["--dtype", "float32", "--device", "cpu", "--profile-seconds", "0.3"]
    arguments += ["--pipeline-parallel-size", "1", "--num-threads", "1"]
    first, second = (
        Daemon(tmp_path / name, *arguments, "--port", str(free_port())) for name in ("one", "two")
    )
    with first, second:
        yield first, second


def client_of(router: Router) -> openai.OpenAI:
    """The official client, once files and batches are there."""
    client = openai.OpenAI(base_url=f"{router.url}/v1", api_key="none", max_retries=3, timeout=60)
    client.batches.list(limit=1)
    return client


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_batch_outlives_a_daemon_and_the_router(
    tmp_path: Path, daemons: tuple[Daemon, Daemon]
) -> None:
    """SIGKILL of a daemon, then of the router, then the daemon comes back: all texts are right."""
    victim, other = daemons
    expected = undisturbed(other)
    router = Router(tmp_path, *instances_of(victim.url, other.url), num_instances=2)
    try:
        router.start()
        router.wait_up(2)
        with client_of(router) as client:
            file = client.files.create(file=("in.jsonl", content()), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
            )
            wait_until(lambda: num_written(tmp_path) >= 10)
            processes = victim.present()
            wait_until(lambda: router.instances()[0]["open_requests"] > 0)
            victim.process.kill()
            wait_until(lambda: router.states() == {victim.url: "lost", other.url: "up"})
            before = num_written(tmp_path)
            wait_until(lambda: num_written(tmp_path) >= before + 10)
            assert client.batches.retrieve(batch.id).status == "in_progress"
    finally:
        router.process.kill()
        router.process.wait()
    assert all_gone(processes, END_TIMEOUT_S)
    assert 20 <= num_written(tmp_path) < NUM_LINES
    victim.process.wait()
    victim.start()
    victim.wait_ready()
    with router, client_of(router) as client:
        wait_until(lambda: client.batches.retrieve(batch.id).status not in OPEN)
        batch = client.batches.retrieve(batch.id)
        assert (batch.status, batch.error_file_id) == ("completed", None)
        assert batch.request_counts is not None
        assert batch.request_counts.completed == NUM_LINES
        assert batch.output_file_id is not None
        answers = [
            json.loads(line)
            for line in client.files.content(batch.output_file_id).text.splitlines()
        ]
    assert set(Counter(answer["custom_id"] for answer in answers).values()) == {1}
    texts = {
        answer["custom_id"]: answer["response"]["body"]["choices"][0]["text"] for answer in answers
    }
    assert texts == expected


OPEN = ("validating", "in_progress", "finalizing")
