"""The lines of batches: which answers are final, and what an instance is sent."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest
from msgspec.structs import replace

from router.batches import instance_lines
from router.batches.instance_lines import MAX_FAILURES, offline_body
from router.upstream.connection import NoSocketError, Upstream
from router.upstream.pool import Pool
from tests.router.batches.world import (
    ENDED,
    Gate,
    begin,
    client,
    echoes,
    line,
    lines,
    read,
    wait_for,
)
from tests.router.world import (
    MODEL,
    Asked,
    FakeDaemon,
    Script,
    World,
    completion,
    run_async,
    running,
)
from wire.instance_status import InstanceStatus, Promises

RETRY_AFTER, NEVER = "retry-after: 1", "x-should-retry: false"


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance_lines, "RETRY_S", 0.0)


def refusing(number: int, status: int, *headers: str, body: object = None) -> Script:
    """A script: so many errors, then answers."""
    left = [number]

    async def script(asked: Asked) -> None:
        if not left[0]:
            await echoes(asked)
            return
        left[0] -= 1
        error = {"error": {"message": f"as often as {left[0]}", "type": "x", "code": "its-own"}}
        await asked.answer(error if body is None else body, status, *headers)

    return script


async def breaks(asked: Asked) -> None:
    """A script: the connection breaks."""
    asked.writer.transport.abort()


def one_line(script: Script) -> tuple[dict[str, Any], int]:
    """The answer to one line, and how often an instance was asked for it."""
    found: list[dict[str, Any]] = []
    daemon = FakeDaemon(script)

    async def test() -> None:
        async with running(daemon) as world, client(world) as api:
            batch = await begin(api, line("a"))
            batch = await wait_for(api, batch.id, *ENDED)
            found.extend(await read(api, batch.output_file_id or batch.error_file_id))

    run_async(test())
    (answer,) = found
    return answer, len(daemon.asked)


@pytest.mark.parametrize(
    ("status", "headers"),
    [(400, ()), (404, ()), (408, (NEVER,)), (422, ()), (429, (NEVER,)), (500, (NEVER,))],
)
def test_an_error_of_the_line_itself_is_its_answer(status: int, headers: tuple[str, ...]) -> None:
    answer, num_asked = one_line(refusing(9, status, *headers))
    assert num_asked == 1
    assert answer["custom_id"] == "a"
    response = answer["response"]
    assert response["status_code"] == status
    assert response["body"]["error"]["code"] == "its-own"
    assert response["request_id"].startswith("req_")


@pytest.mark.parametrize("status", [429, 503])
def test_a_line_waits_for_room(status: int) -> None:
    answer, num_asked = one_line(refusing(3 * MAX_FAILURES, status, RETRY_AFTER))
    assert answer["response"]["status_code"] == 200
    assert num_asked == 3 * MAX_FAILURES + 1


@pytest.mark.parametrize(("number", "status"), [(MAX_FAILURES - 1, 200), (MAX_FAILURES, 500)])
def test_a_line_may_fail_a_few_times(number: int, status: int) -> None:
    answer, num_asked = one_line(refusing(number, 500))
    assert answer["response"]["status_code"] == status
    assert num_asked == MAX_FAILURES


def test_a_line_that_breaks_every_connection_gets_an_error() -> None:
    answer, num_asked = one_line(breaks)
    assert answer["response"]["status_code"] == 500
    assert answer["response"]["body"]["error"]["message"].startswith("The instances failed")
    assert num_asked == MAX_FAILURES


@pytest.mark.parametrize("number", [MAX_FAILURES - 1, 3 * MAX_FAILURES])
def test_a_lost_instance_is_not_the_fault_of_a_line(number: int) -> None:
    """An instance that comes back after each failure is another one."""
    left = [number]

    async def dies(asked: Asked) -> None:
        if left[0]:
            left[0] -= 1
            daemon.status = replace(daemon.status, instance=f"life {left[0]}")
            await asyncio.sleep(0.2)  # until the router has heard of it
            await breaks(asked)
        else:
            await echoes(asked)

    async def test(_: World, api: openai.AsyncOpenAI) -> None:
        batch = await begin(api, line("a"))
        assert (await wait_for(api, batch.id, *ENDED)).error_file_id is None

    daemon = FakeDaemon(dies)
    run(test, daemon)
    assert len(daemon.asked) == number + 1


@pytest.mark.parametrize("body", ["no object", [1], 7])
def test_an_answer_that_is_no_object_is_no_answer(body: object) -> None:
    answer, num_asked = one_line(refusing(2, 200, body=body))
    assert answer["response"]["status_code"] == 200
    assert answer["response"]["body"]["choices"][0]["text"] == "a"
    assert num_asked == 3


def test_an_instance_that_refuses_the_routers_key_does_not_answer() -> None:
    answer, num_asked = one_line(refusing(1, 401))
    assert answer["response"]["status_code"] == 200
    assert num_asked == 2


def test_online_requests_go_before_lines_that_wait() -> None:
    """The lines wait for the first token of the first one, and a client's request does not."""

    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        (daemon,) = world.daemons
        batch = await begin(api, lines(5))
        await world.until(lambda: gate.num_waiting == 1)
        await asyncio.sleep(0.2)
        assert gate.num_waiting == 1
        asking = asyncio.create_task(world.ask("/v1/completions", completion(prompt="online")))
        await world.until(lambda: gate.num_waiting == 2)
        assert daemon.asked[1].json["prompt"] == "online"
        assert "priority" not in daemon.asked[1].json
        gate.open.set()
        assert (await asking).status == 200
        await wait_for(api, batch.id, "completed")

    gate = Gate()
    promises = Promises(free_kv_tokens=1000, kv_tokens=1000, num_offline=1, num_offline_waiting=1)
    status = InstanceStatus("one", ready=True, models=(MODEL,), promises=promises)
    run(test, FakeDaemon(gate, status), routing="adaptive")


def test_lines_stop_while_the_router_drains() -> None:
    async def test(world: World, api: openai.AsyncOpenAI) -> None:
        (daemon,) = world.daemons
        await begin(api, lines(6))
        await world.until(lambda: gate.num_waiting == 2)
        world.router.drain.begin()
        gate.open.set()
        await world.until(lambda: gate.num_waiting == 0)
        await asyncio.sleep(0.2)
        assert len(daemon.asked) == 2

    gate = Gate()
    run(test, FakeDaemon(gate), batch_concurrency=2)


def run(
    test: Callable[[World, openai.AsyncOpenAI], Awaitable[None]],
    *daemons: FakeDaemon,
    **settings: Any,
) -> None:
    """Run a test with a router and its client."""

    async def run_in_world() -> None:
        async with running(*daemons, **settings) as world, client(world) as api:
            await test(world, api)

    run_async(run_in_world())


@pytest.mark.parametrize(
    ("fields", "priority"),
    [
        ({}, 1),
        ({"priority": 0}, 1),
        ({"priority": -3}, 1),
        ({"priority": None}, 1),
        ({"priority": 5}, 5),
        ({"priority": "high"}, "high"),
        ({"service_tier": "flex"}, 1),
    ],
)
def test_a_line_is_marked_as_offline_and_nothing_else_of_it_changes(
    fields: dict[str, Any], priority: object
) -> None:
    body = {"model": "m", "prompt": [1, 2], "nested": {"priority": 0}, **fields}
    assert json.loads(offline_body(json.dumps(body).encode())) == body | {"priority": priority}


def test_numbers_of_a_line_keep_their_digits() -> None:
    body = b'{"seed":12345678901234567890123,"x":0.10000000000000000555}'
    assert offline_body(body) == body[:-1] + b',"priority":1}'


def test_a_line_waits_while_the_router_has_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is neither the fault of the line nor that of the instance."""
    monkeypatch.setattr(instance_lines, "RETRY_S", 0.02)
    connect, left = Pool._connect, [NoSocketError("too many open files") for _ in range(12)]

    async def fail(pool: Pool) -> Upstream:
        if left:
            raise left.pop()
        return await connect(pool)

    async def test() -> None:
        async with running(FakeDaemon(echoes)) as world, client(world) as api:
            monkeypatch.setattr(Pool, "_connect", fail)
            batch = await begin(api, lines(2))
            batch = await wait_for(api, batch.id, *ENDED)
            assert batch.request_counts is not None
            assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 0)
            assert not left

    run_async(test())
