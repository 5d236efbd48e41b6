"""The server: what it lists, what it refuses, and how its tokens are counted."""

import asyncio
from functools import partial
from typing import Any

import pytest

from bench.call import CHAT, COMPLETIONS
from bench.exchange import Address
from bench.filler_text import FillerText
from bench.server import (
    LoadError,
    LoadTarget,
    NotReadyError,
    ProbedServer,
    describe_server,
    probe,
    when_ready,
)
from tests.bench.world import Answer, ScriptedServer, probe_answer, serving, whole_answer


def never(_: dict[str, Any]) -> Answer:
    raise AssertionError("only probes are sent")


def probed(server: ScriptedServer, **options: Any) -> ProbedServer:
    target = LoadTarget(Address.of(server.url))
    return asyncio.run(probe(target, "little", **options))


def test_two_probes_tell_how_many_tokens_a_word_has() -> None:
    with serving(never) as server:
        found = probed(server, counts_words=True)
    assert found == ProbedServer(include_usage=True, filler=FillerText(2.0, 4.0))
    assert [body["max_tokens"] for body in server.probes] == [1, 1]


def test_one_probe_is_enough_if_no_words_are_needed() -> None:
    with serving(never) as server:
        assert probed(server) == ProbedServer(include_usage=True)
    assert len(server.probes) == 1


def test_a_server_that_does_not_know_usage_in_streams_is_asked_without() -> None:
    def script(body: dict[str, Any]) -> Answer:
        if "stream_options" in body:
            return Answer([b'{"error": {"message": "unknown field stream_options"}}'], status=422)
        return Answer(probe_answer(body["prompt"]))

    with serving(never, probe=script) as server:
        assert not probed(server).include_usage


def test_a_server_without_usage_leaves_words_for_tokens() -> None:
    answer = [each for each in whole_answer("a") if b'"usage": null' in each or b"DONE" in each]
    with serving(never, probe=lambda _: Answer(answer)) as server:
        found = probed(server, counts_words=True)
    assert found == ProbedServer(include_usage=True, filler=FillerText(1.0, 0.0))


def test_probes_carry_the_fields_that_all_requests_will_have() -> None:
    with serving(never) as server:
        probed(server, endpoint=CHAT, extra={"ignore_eos": True})
    assert server.probes[0]["ignore_eos"] is True
    assert server.probes[0]["messages"][0]["role"] == "user"


def test_a_refusal_is_shown_in_the_server_s_words() -> None:
    refusal = Answer([b'{"error": {"message": "unknown field ignore_eos"}}'], status=400)
    with (
        serving(never, probe=lambda _: refusal) as server,
        pytest.raises(LoadError, match=f"{COMPLETIONS} fails: HTTP 400: unknown field ignore_eos"),
    ):
        probed(server)


def test_a_server_is_described_by_what_it_lists() -> None:
    with serving(never) as server:
        found = asyncio.run(describe_server(LoadTarget(Address.of(server.url))))
    assert found == {"model": "little", "max_model_len": 64, "version": "1.2.3"}


def test_a_server_that_starts_later_is_waited_for() -> None:
    async def main(server: ScriptedServer) -> dict[str, Any]:
        ask = partial(describe_server, LoadTarget(Address.of(server.url)))
        waiting = asyncio.create_task(when_ready(ask, timeout_s=30.0))
        await asyncio.sleep(0.1)
        server.is_starting = False
        return await waiting

    with serving(never) as server:
        server.is_starting = True
        assert asyncio.run(main(server))["model"] == "little"


def test_only_a_server_that_may_become_ready_is_asked_again() -> None:
    async def refuse() -> None:
        asked.append(1)
        raise (LoadError if len(asked) == 2 else NotReadyError)("no")

    asked: list[int] = []
    with pytest.raises(LoadError):
        asyncio.run(when_ready(refuse, timeout_s=30.0))
    assert len(asked) == 2


@pytest.mark.parametrize(("status", "error"), [(503, NotReadyError), (401, LoadError)])
def test_a_probe_tells_a_server_that_is_starting_from_one_that_refuses(
    status: int, error: type[LoadError]
) -> None:
    answer = Answer([b'{"error": {"message": "no"}}'], status=status)
    with serving(never, probe=lambda _: answer) as server, pytest.raises(error) as raised:
        probed(server)
    assert type(raised.value) is error


def test_a_server_that_lists_nothing_needs_the_name_of_a_model() -> None:
    with serving(never) as server:
        server.is_starting = True
        address = Address.of(server.url)
        with pytest.raises(LoadError, match="names no model"):
            asyncio.run(describe_server(LoadTarget(address)))
        named = asyncio.run(describe_server(LoadTarget(address, "hidden")))
    assert named["model"] == "hidden"
