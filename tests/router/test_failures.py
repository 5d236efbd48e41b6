"""Failures of instances: requests go to another one, and streams go on where they were."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from router.upstream.connection import NoSocketError, Upstream
from router.upstream.pool import Pool
from tests.router.test_front import answers, run, streams
from tests.router.world import (
    DONE,
    END,
    HEAD,
    MODEL,
    Asked,
    FakeDaemon,
    Reply,
    World,
    chunk,
    completion,
    event,
    silent,
)
from wire.instance_status import Promises

FIRST = [event("a", 1), event("b", 2, 3, index=1), event("c", 4, finish="stop")]
REST = [event("d", 5, index=1), event("", index=1, finish="length"), DONE]
Script = Callable[[Asked], Awaitable[None]]


def breaking(*parts: bytes, abort: bool = True) -> Script:
    """A script: these parts, and then the connection breaks."""

    async def script(asked: Asked) -> None:
        await asked.write(*parts)
        await asyncio.sleep(0.05)
        if abort:
            asked.writer.transport.abort()
        asked.writer.close()

    return script


def writing(*events: bytes) -> Script:
    """A script: a complete stream of these events."""

    async def script(asked: Asked) -> None:
        await asked.write(HEAD, *map(chunk, events), END)

    return script


def asked_of(world: World) -> list[Asked]:
    """What the daemons were asked, one after the other."""
    return [asked for daemon in world.daemons for asked in daemon.asked]


def last_error(reply: Reply) -> Any:
    """The error with which a stream of completions ends."""
    *_, error, done, rest = reply.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    return json.loads(error.removeprefix(b"data: "))["error"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "script",
    [breaking(), breaking(abort=False), breaking(b"HTTP/1.1 200 OK\r\ncon"), breaking(HEAD)],
)
def test_a_request_without_an_answer_is_sent_to_another_instance(
    script: Script, stream: bool
) -> None:
    async def test(world: World) -> None:
        reply = await world.ask("/v1/completions", completion(stream=stream))
        assert reply.status == 200
        assert reply.body.endswith(DONE)
        first, second = asked_of(world)
        assert first.body == second.body
        assert await world.metric(
            f'tdpipe_router_retries_total{{instance="{world.daemons[0].url}"}}'
        )

    run(test, FakeDaemon(script), FakeDaemon(streams))


def test_a_whole_answer_that_breaks_in_the_middle_is_asked_for_again() -> None:
    part = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"

    async def test(world: World) -> None:
        reply = await world.ask("/v1/completions", completion())
        assert reply.json == {"text": "hello"}

    run(test, FakeDaemon(breaking(part)), FakeDaemon(answers))


def test_an_instance_that_accepts_no_connection_is_replaced() -> None:
    async def test(world: World) -> None:
        daemon = world.daemons[0]
        assert daemon._server is not None
        daemon._server.close()  # it still sends statuses
        for _ in range(2):
            assert (await world.ask("/v1/completions", completion())).status == 200
        assert len(world.daemons[1].asked) == 2
        assert not daemon.asked

    run(test, FakeDaemon(answers), FakeDaemon(answers))


@pytest.mark.parametrize("status", [429, 503])
def test_an_instance_that_refuses_a_request_is_replaced_a_few_times(status: int) -> None:
    async def refuses(asked: Asked) -> None:
        await asked.answer({"error": {"code": "full"}}, status, "retry-after: 1")

    async def test(world: World) -> None:
        world.daemons[1].script = answers
        assert (await world.ask("/v1/completions", completion())).status == 200
        world.daemons[1].script = refuses
        reply = await world.ask("/v1/completions", completion())
        assert (reply.status, reply.json) == (status, {"error": {"code": "full"}})
        assert reply.headers["retry-after"] == "1"
        assert len(asked_of(world)) == 2 + 4

    run(test, FakeDaemon(refuses), FakeDaemon(refuses))


@pytest.mark.parametrize("status", [400, 404, 500])
def test_other_errors_are_the_answer(status: int) -> None:
    async def fails(asked: Asked) -> None:
        await asked.answer({"error": {"code": "x"}}, status)

    async def test(world: World) -> None:
        assert (await world.ask("/v1/completions", completion(stream=True))).status == status
        assert len(asked_of(world)) == 1

    run(test, FakeDaemon(fails), FakeDaemon(answers))


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_a_stream_goes_on_at_another_instance(cut: int) -> None:
    """The client gets whole chunks only, so that nothing is lost or repeated."""
    half = chunk(REST[0])[:cut]

    async def test(world: World) -> None:
        body = completion(stream=True, n=2)
        reply = await world.ask("/v1/completions", body)
        assert reply.raw == b"".join(map(chunk, FIRST + REST)) + END
        first, second = asked_of(world)
        assert first.json == body
        resume = second.json.pop("tdpipe_resume")
        assert second.body.startswith(b'{"tdpipe_resume":')
        assert resume == {
            "id": "cmpl-1",
            "created": 7,
            "choices": [
                {"index": 0, "token_ids": [1, 4], "finished": True},
                {"index": 1, "token_ids": [2, 3], "finished": False},
            ],
        }
        assert {k: v for k, v in second.json.items() if k != "tdpipe_resume"} == body
        assert await world.metric('tdpipe_router_resumptions_total{outcome="resumed"}') == 1

    script = breaking(HEAD, *map(chunk, FIRST), half)
    run(test, FakeDaemon(script), FakeDaemon(writing(*REST)))


def test_a_stream_goes_on_more_than_once() -> None:
    async def test(world: World) -> None:
        reply = await world.stream()
        assert reply.raw == b"".join(map(chunk, FIRST + REST)) + END
        told = [asked.json.get("tdpipe_resume") for asked in asked_of(world)]
        assert told[0] is None
        assert [c["token_ids"] for c in told[1]["choices"]] == [[1]]
        assert [c["token_ids"] for c in told[2]["choices"]] == [[1, 4], [2, 3]]

    run(
        test,
        FakeDaemon(breaking(HEAD, chunk(FIRST[0]))),
        FakeDaemon(breaking(HEAD, *map(chunk, FIRST[1:]))),
        FakeDaemon(writing(*REST)),
    )


def test_a_stream_of_the_responses_api_goes_on() -> None:
    created = {
        "type": "response.created",
        "response": {"id": "resp_1", "created_at": 9.0},
        "sequence_number": 0,
    }
    deltas = [
        {
            "type": "response.reasoning_text.delta",
            "delta": "a",
            "token_ids": [1],
            "sequence_number": 1,
        },
        {
            "type": "response.output_text.delta",
            "delta": "b",
            "token_ids": [2, 3],
            "sequence_number": 2,
        },
    ]
    first = [b"event: x\ndata: %b\n\n" % json.dumps(e).encode() for e in (created, *deltas)]
    rest = [
        b'event: response.completed\ndata: {"type": "response.completed", "sequence_number": 3}\n\n'
    ]

    async def test(world: World) -> None:
        reply = await world.ask("/v1/responses", {"input": "x", "stream": True})
        assert reply.raw == b"".join(map(chunk, first + rest)) + END
        assert asked_of(world)[1].json["tdpipe_resume"] == {
            "id": "resp_1",
            "created": 9,
            "choices": [{"index": 0, "token_ids": [1, 2, 3], "finished": False}],
            "sequence_number": 2,
        }

    run(
        test,
        FakeDaemon(breaking(HEAD, *map(chunk, first))),
        FakeDaemon(writing(*rest)),
    )


def test_a_stream_that_has_only_comments_begins_again() -> None:
    comment = b": waiting\n\n"

    async def test(world: World) -> None:
        assert (await world.stream()).body == comment + b"".join(REST)
        assert "tdpipe_resume" not in asked_of(world)[1].json

    run(test, FakeDaemon(breaking(HEAD, chunk(comment))), FakeDaemon(writing(*REST)))


def test_a_stream_that_has_its_last_event_is_complete() -> None:
    async def test(world: World) -> None:
        assert (await world.stream()).raw == b"".join(map(chunk, FIRST + REST)) + END
        assert len(asked_of(world)) == 1

    run(test, FakeDaemon(breaking(HEAD, *map(chunk, FIRST + REST))), FakeDaemon(streams))


@pytest.mark.parametrize(
    ("first", "second", "settings"),
    [
        (HEAD + chunk(b'data: {"id": "1", "created": 1'), streams, {}),
        (HEAD + chunk(event("untold")), streams, {}),
        (HEAD + chunk(b"data: {]\n\n"), streams, {}),
        (HEAD + chunk(FIRST[0]), streams, {"max_resume_bytes": 50}),
        (HEAD + chunk(FIRST[0]), answers, {}),
    ],
)
def test_a_stream_that_cannot_go_on_ends_with_an_error(
    first: bytes, second: Script, settings: dict[str, Any]
) -> None:
    async def test(world: World) -> None:
        reply = await world.stream()
        assert last_error(reply)["code"] == "instance_lost"
        assert await world.metric('tdpipe_router_resumptions_total{outcome="impossible"}') == 1

    run(test, FakeDaemon(breaking(first)), FakeDaemon(second), **settings)


def test_a_request_is_given_up_after_a_few_instances() -> None:
    async def test(world: World) -> None:
        reply = await world.ask("/v1/completions", completion())
        assert (reply.status, reply.json["error"]["code"]) == (503, "instance_lost")
        assert len(asked_of(world)) == 2

    run(test, *(FakeDaemon(breaking()) for _ in range(3)), max_attempts=2)


@pytest.mark.parametrize("stream", [False, True])
def test_the_requests_of_an_instance_that_falls_silent_go_on_elsewhere(stream: bool) -> None:
    async def hangs(asked: Asked) -> None:
        if stream:
            await asked.write(HEAD, chunk(FIRST[0]))
        await asked.left()

    async def test(world: World) -> None:
        asking = asyncio.create_task(world.ask("/v1/completions", completion(stream=stream)))
        await world.until(lambda: world.daemons[0].asked)
        world.daemons[0].sends_statuses = False
        reply = await asking
        assert reply.status == 200
        assert ("tdpipe_resume" in world.daemons[1].asked[0].json) is stream
        (shown, _) = (await world.ask("/instances")).json["instances"]
        assert (shown["state"], shown["reason"]) == ("lost", "it has sent no status for 0.3 s")
        assert (await world.ask("/v1/completions", completion())).status == 200
        assert len(world.daemons[0].asked) == 1

    async def ends(asked: Asked) -> None:
        await (writing(*REST) if asked.json.get("stream") else answers)(asked)

    run(test, FakeDaemon(hangs), FakeDaemon(ends), stale_after=0.3)


def test_an_instance_that_starts_again_gets_requests_again() -> None:
    async def test(world: World) -> None:
        daemon = world.daemons[0]
        await daemon.kill()
        await world.until(lambda: not world.is_up())
        assert (await world.ask("/v1/completions", completion())).status in (503, 408)
        daemon.status = replace(daemon.status, instance="two")
        await daemon.start()
        await world.until(world.is_up)
        assert (await world.ask("/v1/completions", completion())).status == 200

    run(test, FakeDaemon(answers), no_instance_timeout=0.1)


def test_an_instance_that_serves_another_model_after_a_restart_moves() -> None:
    async def test(world: World) -> None:
        daemon = world.daemons[0]
        daemon.status = replace(daemon.status, models=("other",))
        links = world.router.fleets.links
        await world.until(lambda: links[daemon.url].status == daemon.status)
        assert (await world.ask("/v1/completions", completion())).status == 404
        assert (await world.ask("/v1/completions", completion(model="other"))).status == 200

    run(test, FakeDaemon(answers))


@pytest.mark.parametrize(("ready", "draining"), [(False, False), (True, True)])
def test_an_instance_that_is_not_ready_gets_nothing(ready: bool, draining: bool) -> None:
    async def test(world: World) -> None:
        daemon = world.daemons[0]
        daemon.status = replace(daemon.status, ready=ready, draining=draining)
        await world.until(lambda: not world.is_up())
        for _ in range(3):
            assert (await world.ask("/v1/completions", completion())).status == 200
        assert not daemon.asked

    run(test, FakeDaemon(answers), FakeDaemon(answers))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 401 X\r\ncontent-length: 0\r\n\r\n", "instance_api_key"),
        (b"HTTP/1.1 404 X\r\ncontent-length: 0\r\n\r\n", "no /instance/status"),
        (b"HTTP/1.1 200 X\r\ncontent-length: 3\r\n\r\n{}\n", "cannot be read"),
        (b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", "no HTTP"),
        (b"no HTTP at all\r\n\r\n", "no HTTP"),
        (b"", "closed the connection"),
    ],
)
def test_a_server_that_is_no_instance_is_told_with_the_reason(answer: bytes, reason: str) -> None:
    class Other(FakeDaemon):
        async def _tell(self, asked: Asked) -> None:
            await asked.write(answer)
            asked.writer.close()

    async def test(world: World) -> None:
        link = world.router.fleets.links[world.daemons[0].url]
        await world.until(lambda: link.is_lost)
        assert reason in (await world.ask("/instances")).json["instances"][0]["reason"]

    run(test, Other(silent), wait=False)


@pytest.mark.parametrize("routing", ["least-loaded", "adaptive"])
def test_an_instance_that_refuses_does_not_get_the_request_again_while_others_have_room(
    routing: str,
) -> None:
    roomy = Promises(free_kv_tokens=10_000, kv_tokens=10_000)

    async def refuses(asked: Asked) -> None:
        await asked.answer({"error": {"code": "full"}}, 429, "retry-after: 1")

    async def test(world: World) -> None:
        full, slow = world.daemons
        held = [await world.connect("/v1/completions", completion(stream=True)) for _ in range(4)]
        await world.until(lambda: len(slow.asked) == 4)
        slow.script = answers
        full.asked.clear()
        for _ in range(3):
            assert (await world.ask("/v1/completions", completion())).status == 200
        assert len(full.asked) <= 3, "once for each request"
        for _, writer in held:
            writer.close()

    daemons = FakeDaemon(refuses), FakeDaemon(silent)
    for daemon in daemons:
        daemon.status = replace(daemon.status, promises=roomy)
    run(test, *daemons, routing=routing)


def test_a_final_refusal_is_the_answer() -> None:
    async def refuses(asked: Asked) -> None:
        await asked.answer({"error": {"code": "x"}}, 429, "x-should-retry: false")

    async def test(world: World) -> None:
        assert (await world.ask("/v1/completions", completion())).status == 429
        assert len(asked_of(world)) == 1

    run(test, FakeDaemon(refuses), FakeDaemon(refuses))


def test_a_connection_that_the_router_cannot_open_is_not_the_instances_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connect, left = Pool._connect, [NoSocketError("too many open files") for _ in range(2)]

    async def fail(pool: Pool) -> Upstream:
        if left:
            raise left.pop()
        return await connect(pool)

    async def one_event(asked: Asked) -> None:
        await asked.write(HEAD, chunk(FIRST[0]))
        await silent(asked)

    async def test(world: World) -> None:
        url = world.daemons[0].url
        reader, writer = await world.connect("/v1/completions", completion(stream=True))
        await reader.readuntil(FIRST[0])
        world.daemons[0].script = answers
        monkeypatch.setattr(Pool, "_connect", fail)
        assert (await world.ask("/v1/completions", completion())).status == 200
        assert not left
        assert world.is_up()
        assert await world.metric(f'tdpipe_router_instance_losses_total{{instance="{url}"}}') == 0
        assert not reader.at_eof(), "the open stream goes on"
        writer.close()

    run(test, FakeDaemon(one_event))


def test_a_request_moves_to_another_fleet_that_has_its_model() -> None:
    """Instances with another alias are a fleet of their own, as in a rolling change of names."""
    with_alias = FakeDaemon(silent)
    with_alias.status = replace(with_alias.status, models=("alias", MODEL))

    async def test(world: World) -> None:
        clients = [asyncio.create_task(world.ask("/v1/completions", completion())) for _ in "ab"]
        await world.until(lambda: all(len(daemon.asked) == 1 for daemon in world.daemons))
        world.daemons[1].script = answers
        await world.daemons[0].kill()
        await world.daemons[1].kill()
        await world.daemons[1].start()
        assert [(await client).status for client in clients] == [200, 200]
        assert len(world.daemons[0].asked) == 1

    run(test, with_alias, FakeDaemon(silent))


def test_the_order_of_the_names_of_models_does_not_divide_a_fleet() -> None:
    daemons = FakeDaemon(answers), FakeDaemon(answers)
    for daemon, models in zip(daemons, ((MODEL, "b"), ("b", MODEL)), strict=True):
        daemon.status = replace(daemon.status, models=models)

    async def test(world: World) -> None:
        for _ in range(4):
            await world.ask("/v1/completions", completion())
        assert [len(daemon.asked) for daemon in world.daemons] == [2, 2]

    run(test, *daemons)


def test_a_model_that_nobody_has_is_unknown_even_if_an_instance_never_came() -> None:
    async def test(world: World) -> None:
        await world.until(world.is_up)
        assert (await world.ask("/v1/completions", completion(model="x"))).status == 503
        await asyncio.sleep(0.3)
        assert (await world.ask("/v1/completions", completion(model="x"))).status == 404

    never = FakeDaemon(answers, sends_statuses=False)
    run(test, FakeDaemon(answers), never, wait=False, no_instance_timeout=0.3)


@pytest.mark.parametrize(
    ("last", "outcome"),
    [
        (b'data: {"error":{"message":"late","code":"request_timeout"}}\n\n' + DONE, "error"),
        (b'data: {"error":{"message":"late","code":"request_timeout"}}\n\n', "error"),
        (event("an error", 9) + DONE, "success"),
    ],
)
@pytest.mark.parametrize("apart", [False, True])
def test_a_stream_that_its_instance_ends_with_an_error_is_no_success(
    last: bytes, outcome: str, apart: bool
) -> None:
    parts = [last] if not apart else [part + b"\n\n" for part in last.split(b"\n\n") if part]

    async def test(world: World) -> None:
        assert (await world.stream()).body == event("a", 1) + last
        labels = f'instance="{world.daemons[0].url}",outcome="{outcome}"'
        assert await world.metric(f"tdpipe_router_requests_total{{{labels}}}") == 1

    run(test, FakeDaemon(writing(event("a", 1), *parts)))


@pytest.mark.parametrize(
    "opening",
    [
        b": waiting\n\n",
        b'event: response.created\ndata: {"type":"response.created"}\n\n'
        b'event: response.in_progress\ndata: {"type":"response.in_progress"}\n\n',
    ],
)
def test_what_comes_before_the_first_token_is_not_the_first_token(opening: bytes) -> None:
    async def script(asked: Asked) -> None:
        await asked.write(HEAD, chunk(opening))
        await told.wait()
        await asked.write(chunk(event("a", 1)), chunk(DONE), END)

    told = asyncio.Event()

    async def test(world: World) -> None:
        began: list[int] = []
        reader, writer = await world.connect("/v1/completions", completion(stream=True))
        await reader.readuntil(opening)
        (ticket,) = world.router.fleets.tickets()
        ticket.on_began = lambda: began.append(1)
        assert not began
        told.set()
        await reader.read()
        assert began == [1]
        writer.close()

    run(test, FakeDaemon(script))


def test_an_answer_that_is_too_long_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.front.answer.MAX_WHOLE_BYTES", 100)

    async def long(asked: Asked) -> None:
        await asked.answer({"text": "x" * 1000})

    async def test(world: World) -> None:
        reply = await world.ask("/v1/completions", completion())
        assert (reply.status, reply.headers["x-should-retry"]) == (502, "false")
        assert reply.json["error"]["code"] == "answer_too_long"
        assert len(asked_of(world)) == 1
        assert world.is_up()

    run(test, FakeDaemon(long), FakeDaemon(long))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"instance":"a","ready":true,"x":' + b"[" * 100_000, "its status cannot be read"),
        (b'{"instance":"a","ready":true,"promises":{"slack_s":[1.0]}}', "1 quantiles"),
        (b'{"instance":"a","ready":true,"promises":{"costs":[[1],[]]}}', "cannot be read"),
        (b"\xff", "its status cannot be read"),
    ],
)
def test_a_status_that_makes_no_sense_harms_only_its_instance(line: bytes, reason: str) -> None:
    class Odd(FakeDaemon):
        async def _tell(self, asked: Asked) -> None:
            await asked.write(b"HTTP/1.1 200 OK\r\ncontent-type: x\r\n\r\n", line + b"\n")
            await silent(asked)

    async def test(world: World) -> None:
        odd = world.router.fleets.links[world.daemons[1].url]
        await world.until(lambda: reason in odd.reason)
        await world.until(world.is_up)
        assert (await world.ask("/v1/completions", completion())).status == 200

    run(test, FakeDaemon(answers), Odd(answers), wait=False)


def test_without_a_socket_a_request_waits_for_a_while_and_blames_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.front.answer.NO_SOCKET_S", 0.3)

    async def fail(_pool: Pool) -> Upstream:
        raise NoSocketError("too many open files")

    async def test(world: World) -> None:
        for link in world.router.fleets.links.values():
            link.pool.close()
        monkeypatch.setattr(Pool, "_connect", fail)
        reply = await world.ask("/v1/completions", completion())
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_socket")
        assert world.is_up()
        retries = f'tdpipe_router_retries_total{{instance="{world.daemons[0].url}"}}'
        assert await world.metric(retries) == 0

    run(test, FakeDaemon(answers))


def test_an_instance_that_leaves_gets_nothing_from_another_fleets_requests() -> None:
    leaving = FakeDaemon(silent)
    leaving.status = replace(leaving.status, models=(MODEL, "alias"))

    async def test(world: World) -> None:
        old, new = world.daemons
        _, writer = await world.connect("/v1/completions", completion(model="alias"))
        await world.until(lambda: len(old.asked) == 1)
        world.router.fleets.leave(old.url)
        assert not world.is_up()
        for _ in range(3):
            assert (await world.ask("/v1/completions", completion())).status == 200
        assert (len(old.asked), len(new.asked)) == (1, 3)
        shown = (await world.ask("/instances")).json["instances"]
        assert [each["state"] for each in shown] == ["leaving", "up"]
        writer.close()

    run(test, leaving, FakeDaemon(answers))
