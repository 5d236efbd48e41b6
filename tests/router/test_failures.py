"""Failures of instances: requests go to another one, and streams go on where they were."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from tests.router.test_front import answers, run, streams
from tests.router.world import (
    DONE,
    END,
    HEAD,
    Asked,
    FakeDaemon,
    Reply,
    World,
    chunk,
    completion,
    event,
    silent,
)

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
