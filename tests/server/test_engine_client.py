"""The engine client: who hears what when the engine comes, falls silent, or is another one."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.messages import EngineReady, Finished, Hello, Submit
from server import engine_client
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

HELLO = TOKENIZER.encode("hello")


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
        address = config(tmp_path).server_address
        daemon.engine.close()
        daemon.engine = FakeEngine(address, saying("hello"))
        daemon.wait_until(lambda: daemon.client.is_ready)
        assert daemon.complete().status_code == 200


def test_a_new_engine_process_ends_what_the_old_one_had(mute: Daemon) -> None:
    mute.engine.send(stats(uptime_s=9.0))
    with streaming(mute) as response:
        mute.engine.wait_for(Submit)
        mute.engine.send(stats(uptime_s=0.5))
        response.read()
        assert events(response)[-1]["error"]["message"] == "The engine was restarted."
    mute.engine.wait_for(Hello, 2)
    mute.wait_until(lambda: mute.client.is_ready)
    mute.engine.script = saying("hello")
    assert mute.complete().status_code == 200


@pytest.mark.usefixtures("quick_ticks")
def test_a_silent_engine_ends_open_requests_and_is_greeted_again(
    mute: Daemon,
) -> None:
    response = mute.complete()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The engine has stopped answering."
    # Greeted again, it answers, and all is well.
    mute.engine.wait_for(Hello, 2)
    mute.wait_until(lambda: mute.client.is_ready)


def test_a_lost_pipeline_is_a_pause_for_open_requests_and_503_for_new_ones(mute: Daemon) -> None:
    with streaming(mute) as response:
        (submit,) = mute.engine.wait_for(Submit)
        mute.engine.send(stats(ready=False, uptime_s=2.0))
        mute.wait_until(lambda: not mute.client.is_ready)
        assert mute.complete().status_code == 503
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
