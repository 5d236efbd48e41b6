"""The front: answers pass unchanged, and failures have the bodies of the API."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from configs.schema.route import RouteConfig
from tests.router.world import (
    DONE,
    END,
    HEAD,
    MODEL,
    PATIENCE_S,
    Asked,
    FakeDaemon,
    World,
    chunk,
    completion,
    event,
    parse,
    run_async,
    running,
    silent,
)
from wire.instance_status import InstanceStatus, Promises

EVENTS = [event("hel", 5), event("lo", 6, 7), event("", 0, finish="stop"), DONE]


async def streams(asked: Asked) -> None:
    """A script: a stream of some events."""
    await asked.write(HEAD, *map(chunk, EVENTS), END)


async def answers(asked: Asked) -> None:
    """A script: a whole answer, which tells the tokens of the prompt."""
    await asked.answer({"text": "hello"}, 200, "x-tdpipe-prompt-tokens: 5")


def run(test: Callable[[World], Awaitable[None]], *daemons: FakeDaemon, **settings: Any) -> None:
    """Run a test with a router."""

    async def run_in_world() -> None:
        async with running(*daemons, **settings) as world:
            await test(world)

    run_async(run_in_world())


def test_a_stream_passes_with_its_chunks() -> None:
    async def test(world: World) -> None:
        reply = await world.stream()
        assert reply.raw == b"".join(map(chunk, EVENTS)) + END
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert reply.headers["cache-control"] == "no-cache"
        (asked,) = world.daemons[0].asked
        assert (asked.method, asked.path) == ("POST", "/v1/completions")
        assert asked.json == completion(stream=True)
        assert asked.headers["x-tdpipe-resumable"] == "1"

    run(test, FakeDaemon(streams))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_a_stream_passes_in_whole_chunks_wherever_the_network_cuts_it(size: int) -> None:
    async def cut(asked: Asked) -> None:
        data = b"".join(map(chunk, EVENTS)) + END
        await asked.write(HEAD[:size], HEAD[size:])
        for i in range(0, len(data), size):
            await asked.write(data[i : i + size])
            await asyncio.sleep(0.001)

    async def test(world: World) -> None:
        assert (await world.stream()).raw == b"".join(map(chunk, EVENTS)) + END

    run(test, FakeDaemon(cut))


def test_an_http_1_0_client_gets_the_events_without_chunks() -> None:
    async def test(world: World) -> None:
        body = completion(stream=True)
        reader, writer = await world.connect("/v1/completions", body, version="1.0")
        reply = parse(await reader.read())
        writer.close()
        assert reply.raw == b"".join(EVENTS)
        assert "transfer-encoding" not in reply.headers

    run(test, FakeDaemon(streams))


def test_a_stream_without_chunks_passes() -> None:
    async def until_closed(asked: Asked) -> None:
        await asked.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n", *EVENTS)
        asked.writer.close()

    async def test(world: World) -> None:
        assert (await world.stream()).body == b"".join(EVENTS)

    run(test, FakeDaemon(until_closed))


def test_a_whole_answer_passes_and_teaches_the_bytes_per_token() -> None:
    async def test(world: World) -> None:
        reply = await world.ask("/v1/completions", completion(prompt="x" * 50), x_request_id="mine")
        assert (reply.status, reply.json) == (200, {"text": "hello"})
        assert reply.headers["x-request-id"] == "mine"
        assert world.daemons[0].asked[0].headers["x-request-id"] == "mine"
        assert await world.metric(
            f'tdpipe_router_requests_total{{instance="{world.daemons[0].url}",outcome="success"}}'
        )

    run(test, FakeDaemon(answers))


def test_connections_to_a_daemon_are_used_again() -> None:
    async def test(world: World) -> None:
        for _ in range(3):
            await world.stream()
            await world.ask("/v1/completions", completion())
        assert len({id(asked.writer) for asked in world.daemons[0].asked}) == 1

    async def both(asked: Asked) -> None:
        await (streams if asked.json.get("stream") else answers)(asked)

    run(test, FakeDaemon(both))


def test_a_slow_client_slows_the_daemon_down() -> None:
    written = 0

    async def endless(asked: Asked) -> None:
        nonlocal written
        await asked.write(HEAD)
        while True:
            await asked.write(chunk(b"x" * 10_000))
            written += 10_000

    async def test(world: World) -> None:
        _, writer = await world.connect("/v1/completions", completion(stream=True))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        seen = -1
        while seen != written:  # until the buffers of both connections are full
            seen = written
            await asyncio.sleep(0.3)
        assert 0 < written < 50_000_000
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        await world.until(lambda: written > seen + 1_000_000)
        writer.transport.abort()
        await world.daemons[0].asked[0].left()

    run(test, FakeDaemon(endless))


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_request_at_the_daemon(stream: bool) -> None:
    async def begins(asked: Asked) -> None:
        if stream:
            await asked.write(HEAD, chunk(EVENTS[0]))
        await asked.left()

    async def test(world: World) -> None:
        reader, writer = await world.connect("/v1/completions", completion(stream=stream))
        if stream:
            await reader.readuntil(b"hel")
        await world.until(lambda: world.daemons[0].asked)
        writer.transport.abort()
        await world.until(lambda: world.router.drain.num_open == 0)
        name = f'instance="{world.daemons[0].url}",outcome="disconnect"'
        assert await world.metric(f"tdpipe_router_requests_total{{{name}}}") == 1
        assert await world.metric("tdpipe_router_pending_requests") == 0

    run(test, FakeDaemon(begins))


def test_a_client_that_leaves_the_queue_is_forgotten() -> None:
    async def test(world: World) -> None:
        _, writer = await world.connect("/v1/completions", completion())
        await world.until(lambda: world.router.drain.num_open)
        assert await world.metric("tdpipe_router_pending_requests") == 1
        writer.transport.abort()
        await world.until(lambda: world.router.drain.num_open == 0)
        assert await world.metric("tdpipe_router_pending_requests") == 0

    full = InstanceStatus("one", ready=True, models=(MODEL,), ttft_slo=1.0, tpot_slo=1.0)
    run(test, FakeDaemon(status=full), routing="ecoserve")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, None),
        (b"[]", 400, None),
        (b'{"model": "other", "prompt": "x"}', 404, "model_not_found"),
    ],
)
def test_a_wrong_request_is_refused_as_a_daemon_does(
    body: bytes, status: int, code: str | None
) -> None:
    async def test(world: World) -> None:
        reply = await world.ask("/v1/chat/completions", body)
        assert (reply.status, reply.json["error"]["code"]) == (status, code)
        assert not world.daemons[0].asked

    run(test, FakeDaemon(answers))


def test_without_an_instance_requests_are_refused_with_503() -> None:
    async def test(world: World) -> None:
        assert (await world.ask("/ready")).status == 503
        assert (await world.ask("/health")).status == 503
        reply = await world.ask("/v1/completions", completion())
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_instance")
        assert reply.headers["retry-after"] == "1"

    run(test, FakeDaemon(sends_statuses=False), wait=False)


def test_a_full_queue_is_refused_with_429() -> None:
    async def test(world: World) -> None:
        waiting = [await world.connect("/v1/completions", completion()) for _ in range(2)]
        await world.until(lambda: world.router.drain.num_open == 2)
        reply = await world.ask("/v1/completions", completion())
        assert (reply.status, reply.json["error"]["code"]) == (429, "rate_limit_exceeded")
        for _, writer in waiting:
            writer.close()

    full = InstanceStatus("one", ready=True, models=(MODEL,), ttft_slo=1.0, tpot_slo=1.0)
    run(test, FakeDaemon(status=full), routing="ecoserve", max_pending=2)


def test_a_request_that_waits_too_long_gets_408() -> None:
    async def test(world: World) -> None:
        reply = await world.ask("/v1/completions", completion(timeout=0.1))
        assert (reply.status, reply.json["error"]["code"]) == (408, "deadline_exceeded")

    full = InstanceStatus("one", ready=True, models=(MODEL,), ttft_slo=1.0, tpot_slo=1.0)
    run(test, FakeDaemon(status=full), routing="ecoserve")


def test_clients_need_the_routers_key_and_daemons_get_theirs() -> None:
    async def test(world: World) -> None:
        body = completion()
        assert (await world.ask("/v1/completions", body)).status == 401
        assert (await world.ask("/instances")).status == 401
        assert (await world.ask("/health")).status == 200
        reply = await world.ask("/v1/completions", body, authorization="Bearer front")
        assert reply.status == 200
        (asked,) = world.daemons[0].asked
        assert asked.headers["authorization"] == "Bearer back"
        assert world.daemons[0].status_headers[0]["authorization"] == "Bearer back"

    run(test, FakeDaemon(answers), api_key="front", instance_api_key="back")


def test_a_daemon_without_a_key_does_not_get_the_clients() -> None:
    async def test(world: World) -> None:
        await world.ask("/v1/completions", completion(), authorization="Bearer secret", cookie="c")
        (asked,) = world.daemons[0].asked
        assert {"authorization", "cookie"} & set(asked.headers) == set()

    run(test, FakeDaemon(answers))


def test_models_are_those_of_all_instances_and_requests_go_where_theirs_is() -> None:
    def serving(*models: str, length: int) -> FakeDaemon:
        status = InstanceStatus("x", ready=True, models=models, max_model_len=length)
        return FakeDaemon(answers, status)

    async def test(world: World) -> None:
        listed = (await world.ask("/v1/models")).json
        assert listed["object"] == "list"
        told = {(one["id"], one["root"], one["max_model_len"]) for one in listed["data"]}
        assert told == {("a", "a", 10), ("b", "a", 10), ("c", "c", 20)}
        assert (await world.ask("/v1/models/c")).json["id"] == "c"
        assert (await world.ask("/v1/models/d")).status == 404
        for model, count in (("a", 1), ("b", 1), ("c", 3)):
            for _ in range(count):
                await world.ask("/v1/completions", completion(model=model))
        got = [[asked.json["model"] for asked in daemon.asked] for daemon in world.daemons]
        assert sorted(got[0] + got[2]) == ["a", "b"]
        assert got[1] == ["c", "c", "c"]
        await world.ask("/v1/completions", {"prompt": "x"})  # whatever is served
        assert sum(len(daemon.asked) for daemon in world.daemons) == 6

    run(test, serving("a", "b", length=30), serving("c", length=20), serving("a", "b", length=10))


def test_other_requests_are_forwarded_with_their_query() -> None:
    async def test(world: World) -> None:
        reply = await world.ask("/tokenize?x=%20y", {"prompt": "x"})
        assert reply.json == {"text": "hello"}
        (asked,) = world.daemons[0].asked
        assert (asked.method, asked.path) == ("POST", "/tokenize?x=%20y")
        assert (await world.ask("/tokenizer_info")).status == 200
        assert world.daemons[0].asked[1].method == "GET"
        assert (await world.ask("/v1/files/a/b")).status == 404, "files are the router's own"
        assert (await world.ask("/v1/batches/a", {})).status == 404
        assert len(world.daemons[0].asked) == 2

    run(test, FakeDaemon(answers))


def test_a_forwarded_request_goes_where_its_model_is() -> None:
    with_other = FakeDaemon(answers)
    with_other.status = replace(with_other.status, models=("other",))

    async def test(world: World) -> None:
        for _ in range(3):
            await world.ask("/tokenize", {"model": "other", "prompt": "x"})
            await world.ask("/tokenize", {"model": MODEL, "prompt": "x"})
        for daemon, model in zip(world.daemons, (MODEL, "other"), strict=True):
            assert [asked.json["model"] for asked in daemon.asked] == 3 * [model]
        for body in ({"model": "nobody's"}, {"model": 3}, [], b"[", b"\xff"):
            assert (await world.ask("/tokenize", body)).status == 200, (
                "an instance says what is wrong"
            )

    run(test, FakeDaemon(answers), with_other)


def test_the_status_of_an_instance_is_not_for_clients() -> None:
    async def test(world: World) -> None:
        num_streams = len(world.daemons[0].status_headers)
        for path in ("/instance/status", "/instance/status?owner=me", "/instance/x"):
            assert (await world.ask(path)).status == 404
            assert (await world.ask(path, {})).status == 404
        assert len(world.daemons[0].status_headers) == num_streams

    run(test, FakeDaemon(answers))


def test_flex_and_low_priorities_are_offline() -> None:
    async def test(world: World) -> None:
        kinds = []
        core = next(iter(world.router.fleets._fleets)).core
        handle = core.handle

        def spy(event: object, now: float) -> object:
            if type(event).__name__ == "Arrived":
                kinds.append(event.kind)  # type: ignore[attr-defined]
            return handle(event, now)  # type: ignore[arg-type]

        core.handle = spy  # type: ignore[method-assign, assignment]
        for fields in ({}, {"service_tier": "flex"}, {"priority": 3}, {"service_tier": "auto"}):
            await world.ask("/v1/completions", completion(**fields))
        assert kinds == ["online", "offline", "offline", "online"]

    run(test, FakeDaemon(answers))


def test_its_page_is_its_own_and_open_and_its_data_is_not() -> None:
    async def test(world: World) -> None:
        page = await world.ask("/")
        assert page.status == 200
        assert b"tdpipe router" in page.body
        assert (await world.ask("/page/router.js")).status == 200
        assert (await world.ask("/instances")).status == 401
        for path in ("/pipeline/status", "/page/daemon.js"):
            reply = await world.ask(path, authorization="Bearer front")
            assert reply.status == 404, path
        assert not world.daemons[0].asked

    run(test, FakeDaemon(answers), api_key="front")


def test_requests_that_wait_for_an_instance_are_counted() -> None:
    async def test(world: World) -> None:
        reader, writer = await world.connect("/v1/completions", completion(stream=True))
        await world.until(lambda: world.router.fleets.num_pending == 1)
        assert (await world.ask("/instances")).json["pending_requests"] == 1
        writer.close()
        await world.until(lambda: world.router.fleets.num_pending == 0)
        assert reader is not None

    full = InstanceStatus("one", ready=True, models=(MODEL,), ttft_slo=1.0, tpot_slo=1.0)
    run(test, FakeDaemon(status=full), routing="ecoserve")


def test_the_instances_are_shown_with_their_state() -> None:
    async def test(world: World) -> None:
        (shown,) = (await world.ask("/instances")).json["instances"]
        assert (shown["url"], shown["state"]) == (world.daemons[0].url, "up")
        assert shown["models"] == [MODEL]
        assert await world.metric(f'tdpipe_router_instance_up{{instance="{world.daemons[0].url}"}}')

    run(test, FakeDaemon(answers))


def test_open_streams_may_end_and_new_requests_are_refused_while_it_drains() -> None:
    go_on = asyncio.Event()

    async def slow(asked: Asked) -> None:
        await asked.write(HEAD, chunk(EVENTS[0]))
        await go_on.wait()
        await asked.write(chunk(DONE), END)

    async def test(world: World) -> None:
        reader, writer = await world.connect("/v1/completions", completion(stream=True))
        head = await reader.readuntil(b"hel")
        assert world.router.server is not None
        world.router.server.stop()
        reply = await world.ask("/v1/completions", completion())
        assert (reply.status, reply.json["error"]["code"]) == (503, "shutting_down")
        assert (await world.ask("/ready")).status == 503
        go_on.set()
        assert parse(head + await reader.read()).body.endswith(DONE)
        writer.close()
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.shield(world.serving)

    run(test, FakeDaemon(slow), shutdown_timeout=PATIENCE_S)


def test_what_is_open_at_the_end_of_the_drain_ends_with_an_error() -> None:
    async def begins(asked: Asked) -> None:
        if not asked.json.get("stream"):
            await silent(asked)
        await asked.write(HEAD, chunk(EVENTS[0]))
        await asked.left()

    async def test(world: World) -> None:
        asking = asyncio.create_task(world.ask("/v1/completions", completion()))
        streaming = asyncio.create_task(world.stream())
        await world.until(lambda: len(world.daemons[0].asked) == 2)
        await asyncio.sleep(0.05)
        assert world.router.server is not None
        world.router.server.stop()
        reply = await asking
        assert (reply.status, reply.json["error"]["code"]) == (503, "shutting_down")
        events = (await streaming).body.split(b"\n\n")
        assert json.loads(events[-3].removeprefix(b"data: "))["error"]["code"] == "shutting_down"
        assert events[-2] == b"data: [DONE]"

    run(test, FakeDaemon(begins))


def test_the_settings_of_a_router_are_flat() -> None:
    assert RouteConfig.of(instances=["http://one"]).instances.instances == ("http://one",)
    assert msgspec.json.encode(RouteConfig().core.flat("json"))


def test_the_load_is_a_metric_while_instances_with_targets_serve() -> None:
    async def shown(world: World) -> bool:
        page = (await world.ask("/metrics")).body.decode()
        return f'tdpipe_router_load{{models="{MODEL}"}} 0.0' in page

    async def test(world: World) -> None:
        while not await shown(world):
            await asyncio.sleep(0.01)
        await world.daemons[0].kill()
        while await shown(world):
            await asyncio.sleep(0.01)

    timely = Promises(lone_turn_s=0.1)
    told = InstanceStatus(
        "one", ready=True, models=(MODEL,), ttft_slo=1.0, tpot_slo=1.0, promises=timely
    )
    run(test, FakeDaemon(status=told))
