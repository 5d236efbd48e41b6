"""The engine client: what happens when the engine starts, falls silent, or is replaced."""

import asyncio
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from server.requests import engine_client
from tests.server.world import (
    MODEL,
    PATIENCE_S,
    TOKENIZER,
    Daemon,
    FakeEngine,
    config,
    events,
    generated,
    saying,
    serving,
    stats,
)
from wire.messages import EngineReady, Finished, Hello, Message, Submit

HELLO, WORLD = TOKENIZER.encode("hello"), TOKENIZER.encode(" world")


@pytest.fixture
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is noticed in a tenth of a second."""
    monkeypatch.setattr(engine_client, "TICK_S", 0.01)
    monkeypatch.setattr(engine_client, "SILENCE_S", 0.1)


@pytest.fixture
def mute(tmp_path: Path) -> Iterator[Daemon]:
    """A ready server; its engine says nothing by itself."""
    with serving(tmp_path) as daemon:
        yield daemon


def streaming(daemon: Daemon, **body: Any) -> Any:
    json = {"model": MODEL, "prompt": "hi", "stream": True} | body
    return daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=json)


@pytest.mark.usefixtures("quick_ticks")
def test_hello_is_said_until_the_engine_is_there(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello"), ready=False) as daemon:
        daemon.engine.wait_for(Hello)
        assert daemon.get("/ready").status_code == 503
        daemon.engine.ready, daemon.engine.stats = EngineReady(2, 40, 16, 64), stats()
        daemon.engine.introduce()
        daemon.wait_until(lambda: daemon.client.is_ready)
        assert daemon.complete().json()["choices"][0]["text"] == "hello"


@pytest.mark.usefixtures("quick_ticks")
def test_an_engine_that_starts_after_the_server_is_found(tmp_path: Path) -> None:
    with serving(tmp_path, ready=False) as daemon:
        daemon.engine.wait_for(Hello)
        address = config(tmp_path).runtime.server_address
        daemon.engine.close()
        daemon.engine = FakeEngine(address, saying("hello"))
        daemon.wait_until(lambda: daemon.client.is_ready)
        assert daemon.complete().status_code == 200


def test_a_new_engine_process_goes_on_where_the_old_one_was(mute: Daemon) -> None:
    with streaming(mute, max_tokens=len(HELLO + WORLD)) as response:
        (first,) = mute.engine.wait_for(Submit)
        mute.engine.send(generated(first.sequence_id, *HELLO))
        mute.wait_until(lambda: mute.client.num_generated == len(HELLO))
        mute.engine.send(stats(engine=2))
        _, again = mute.engine.wait_for(Submit, 2)
        assert again == replace(first, output_token_ids=array("i", HELLO).tobytes())
        mute.engine.send(
            generated(first.sequence_id, *WORLD), Finished(first.sequence_id, "length")
        )
        response.read()
    assert "".join(event["choices"][0]["text"] for event in events(response)) == "hello world"


def test_what_a_new_engine_says_before_it_knows_us_is_of_no_concern(mute: Daemon) -> None:
    """It may have been given an old message that was still under way."""
    with streaming(mute, max_tokens=len(HELLO)) as response:
        (submit,) = mute.engine.wait_for(Submit)
        mute.engine.answers_hello = False
        mute.engine.send(stats(engine=2))
        mute.engine.wait_for(Hello, 2)
        mute.engine.send(
            generated(submit.sequence_id, *HELLO), Finished(submit.sequence_id, "length")
        )
        mute.engine.introduce()
        _, again = mute.engine.wait_for(Submit, 2)
        assert again == submit
        mute.engine.send(
            generated(submit.sequence_id, *HELLO), Finished(submit.sequence_id, "length")
        )
        response.read()
    assert "".join(event["choices"][0]["text"] for event in events(response)) == "hello"


def test_requests_that_come_while_there_is_no_engine_are_handed_to_the_next(mute: Daemon) -> None:
    mute.engine.answers_hello = False
    mute.engine.send(stats(engine=2))
    mute.engine.wait_for(Hello, 2)
    with streaming(mute) as response:
        assert mute.get("/ready").status_code == 503
        assert not [m for m in mute.engine.received if isinstance(m, Submit)]
        mute.engine.introduce()
        (submit,) = mute.engine.wait_for(Submit)
        mute.engine.send(
            generated(submit.sequence_id, *HELLO), Finished(submit.sequence_id, "length")
        )
        response.read()
    assert events(response)[-1]["choices"][0]["finish_reason"] == "length"


def test_a_client_that_leaves_while_there_is_no_engine_is_not_resubmitted(mute: Daemon) -> None:
    with streaming(mute):
        mute.engine.wait_for(Submit)
        mute.engine.answers_hello = False
        mute.engine.send(stats(engine=2))
        mute.engine.wait_for(Hello, 2)
    mute.wait_until(lambda: mute.client.num_queued == 0)
    mute.engine.introduce()
    mute.wait_until(lambda: mute.client.is_ready)
    mute.engine.script = saying("hello")
    assert mute.complete().status_code == 200
    assert len(mute.engine.wait_for(Submit)) == 2


@pytest.mark.usefixtures("quick_ticks")
def test_a_silent_engine_is_waited_for_and_what_it_has_is_not_asked_twice(mute: Daemon) -> None:
    mute.engine.beats = False
    with streaming(mute) as response:
        (submit,) = mute.engine.wait_for(Submit)
        mute.wait_until(lambda: not mute.client.is_connected)
        mute.engine.send(stats(uptime_s=8.0))
        mute.engine.send(
            generated(submit.sequence_id, *HELLO), Finished(submit.sequence_id, "length")
        )
        response.read()
    assert events(response)[-1]["choices"][0]["finish_reason"] == "length"
    assert len(mute.engine.wait_for(Submit)) == 1


@pytest.mark.usefixtures("quick_ticks")
def test_an_engine_that_stays_silent_ends_open_requests_at_last(
    mute: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    mute.engine.beats = False
    monkeypatch.setattr(mute.client, "_patience_s", 0.2)
    response = mute.complete()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The engine has stopped answering."


def test_a_lost_pipeline_is_a_pause_for_open_requests_and_for_new_ones(mute: Daemon) -> None:
    with streaming(mute) as response:
        (submit,) = mute.engine.wait_for(Submit)
        mute.engine.send(stats(ready=False, uptime_s=2.0))
        mute.wait_until(lambda: not mute.client.is_ready)
        assert mute.get("/ready").status_code == 503
        with streaming(mute):
            mute.engine.wait_for(Submit, 2)
        mute.engine.send(EngineReady(2, 40, 16, 64), stats(uptime_s=3.0))
        mute.engine.send(
            generated(submit.sequence_id, *HELLO), Finished(submit.sequence_id, "length")
        )
        response.read()
        assert events(response)[-1]["choices"][0]["finish_reason"] == "length"
    assert len(mute.engine.wait_for(Hello)) == 1


def test_an_engine_that_is_no_longer_ready_is_waited_for_anew(mute: Daemon) -> None:
    mute.engine.send(stats(ready=False, uptime_s=2.0))
    mute.wait_until(lambda: not mute.client.is_ready)
    waiting = asyncio.run_coroutine_threadsafe(mute.client.wait_ready(), mute.loop)
    asyncio.run_coroutine_threadsafe(asyncio.sleep(0), mute.loop).result(PATIENCE_S)
    assert not waiting.done()
    mute.engine.send(EngineReady(2, 40, 16, 64), stats(uptime_s=3.0))
    waiting.result(PATIENCE_S)
    assert mute.client.is_ready


def test_an_engine_that_spoke_first_is_greeted_all_the_same(tmp_path: Path) -> None:
    """What is handed to an engine that was never greeted is not for it."""

    async def meet() -> list[Message]:
        client = engine_client.EngineClient(config(tmp_path).runtime.server_address)
        while not await asyncio.to_thread(client._spoke.wait, 1.0):
            pass  # its stats are there before the client looks for the first time
        running = asyncio.create_task(client.run())
        hellos = await asyncio.to_thread(engine.wait_for, Hello)
        running.cancel()
        return hellos

    engine = FakeEngine(config(tmp_path).runtime.server_address)
    engine.ready, engine.stats = None, stats(ready=False)
    try:
        assert asyncio.run(meet())
    finally:
        engine.close()


def test_words_about_unknown_sequences_are_ignored(mute: Daemon) -> None:
    mute.engine.send(generated(5, 1, 2, 3), Finished(5, "stop"))
    mute.engine.script = saying("hello")
    assert mute.complete().status_code == 200
    assert mute.client.num_queued == 0


def test_ids_are_never_given_twice(mute: Daemon) -> None:
    mute.engine.script = saying("hello")
    for _ in range(3):
        mute.complete(n=2)
    ids = [submit.sequence_id for submit in mute.engine.wait_for(Submit, 6)]
    assert len(set(ids)) == 6
