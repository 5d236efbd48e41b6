"""The status stream: what routers learn, and when it ends."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest
from starlette.types import Message

from configs.config import Config
from server.http.drain import Drain
from server.openai.routes.instance_status import MAX_FOLLOWERS, InstanceStatuses
from server.requests.prefix_digest import PrefixDigest
from tests.server.world import MAX_MODEL_LEN, Daemon, saying, serving, stats
from wire.instance_status import InstanceStatus
from wire.prefix_keys import prefix_keys
from wire.promises import Promises

PATH = "/instance/status"
KV_TOKENS = 40 * 16


@contextmanager
def following(daemon: Daemon, **headers: str) -> Iterator[Iterator[InstanceStatus]]:
    """The statuses of one stream."""
    with daemon.http.stream("GET", daemon.url + PATH, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/jsonl"
        lines = response.iter_lines()
        yield (msgspec.json.decode(line, type=InstanceStatus) for line in lines)


def test_the_first_status_comes_at_once_and_says_who_it_is(tmp_path: Path) -> None:
    with serving(tmp_path, served_model_name="a,b", ttft_slo=1.5, tpot_slo=0.2) as daemon:
        daemon.engine.beats = False
        with following(daemon) as statuses, following(daemon) as others:
            status = next(statuses)
            assert (status.ready, status.draining, status.models) == (True, False, ("a", "b"))
            assert (status.ttft_slo, status.tpot_slo) == (1.5, 0.2)
            assert status.max_model_len == MAX_MODEL_LEN
            assert status.promises == Promises()
            assert next(others).instance == status.instance
            assert next(statuses).instance == status.instance  # also without news


def test_the_promises_of_the_engine_are_told(daemon: Daemon) -> None:
    promises = Promises(phase="prefill", slack_s=(0.5,) * 7, num_decoding=3, slot_prefill_s=2.0)
    with following(daemon) as statuses:
        next(statuses)
        daemon.engine.send(stats(promises=promises))
        assert next(status for status in statuses if status.promises == promises).ready
        daemon.engine.send(stats(ready=False))
        assert not next(status for status in statuses if not status.ready).promises.num_decoding


def test_an_instance_without_an_engine_is_not_ready(tmp_path: Path) -> None:
    with serving(tmp_path, ready=False) as daemon, following(daemon) as statuses:
        status = next(statuses)
        assert (status.ready, status.max_model_len) == (False, 0)


def test_it_needs_the_key(tmp_path: Path) -> None:
    with serving(tmp_path, api_key="secret") as daemon:
        assert daemon.get(PATH).status_code == 401
        with following(daemon, authorization="Bearer secret") as statuses:
            assert next(statuses).ready


def test_during_the_drain_it_says_so_and_ends_with_it(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, following(daemon) as statuses:
        body = {"model": "little", "prompt": "hi", "stream": True}
        url = f"{daemon.url}/v1/completions"
        with httpx.stream("POST", url, json=body, timeout=10.0) as answer:
            assert answer.status_code == 200
            assert not next(statuses).draining
            daemon.stop()
            assert next(status for status in statuses if status.draining).ready
            assert next(statuses).draining, "it goes on while a request is open"
        assert all(status.draining for status in statuses), "the request was the last one"


def test_only_so_many_may_follow(daemon: Daemon) -> None:
    with following(daemon) as statuses:
        next(statuses)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("server.openai.routes.instance_status.MAX_FOLLOWERS", 1)
            refused = daemon.get(PATH)
        assert refused.status_code == 429
        assert "Too many routers" in refused.json()["error"]["message"]
    assert MAX_FOLLOWERS > 1


def test_a_client_that_leaves_makes_room(tmp_path: Path) -> None:
    # With a server of its own, where no other client may still be leaving.
    with serving(tmp_path) as daemon, pytest.MonkeyPatch.context() as patch:
        patch.setattr("server.openai.routes.instance_status.MAX_FOLLOWERS", 1)
        with following(daemon) as statuses:
            next(statuses)
            assert daemon.get(PATH).status_code == 429
        daemon.wait_until(lambda: is_free(daemon))


def is_free(daemon: Daemon) -> bool:
    """Whether there is room for another one."""
    with daemon.http.stream("GET", daemon.url + PATH) as response:
        return response.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_that_were_prefilled_are_told_as_keys(tmp_path: Path, stream: bool) -> None:
    short = {"prompt": [5] * 60, "cache_salt": "x" * 600}
    with serving(tmp_path, saying("hello"), max_model_len=64) as daemon:
        with following(daemon) as statuses:
            assert next(statuses).prefix_added == ()
            daemon.complete(**short, max_tokens=2, stream=stream)  # too short for a key
            body = {
                "prompt": "quick " * 100,
                "truncate_prompt_tokens": 50,
                "max_tokens": 2,
                "stream": stream,
            }
            assert daemon.complete(**body).status_code == 200
            status = next(status for status in statuses if status.prefix_added)
            assert status.prefix_added == prefix_keys(body, b"quick " * 100)
        with following(daemon) as statuses:
            assert next(statuses).prefix_added == status.prefix_added
            daemon.engine.introduce()  # the stages were lost, and are ready again
            dropped = next(status for status in statuses if status.prefix_dropped)
            assert dropped.prefix_dropped == status.prefix_added


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_says_how_many_tokens_its_prompts_have(tmp_path: Path, stream: bool) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        answer = daemon.complete(prompt=[[5, 6, 7], [5, 6]], n=2, max_tokens=2, stream=stream)
        assert answer.headers["x-tdpipe-prompt-tokens"] == "5"
        refused = daemon.complete(prompt=[5] * 100)
        assert "x-tdpipe-prompt-tokens" not in refused.headers


def test_an_instance_belongs_to_the_router_whose_stream_is_open(daemon: Daemon) -> None:
    with following_as(daemon, "first") as statuses, following(daemon) as onlooker:
        assert next(statuses).instance == next(onlooker).instance
        refusal = daemon.get(f"{PATH}?owner=second")
        assert refusal.status_code == 409
        assert refusal.json()["error"]["code"] == "owned"
        with following_as(daemon, "first") as again:
            assert next(again).instance
    for _ in range(100):  # the server has yet to notice that the first one has left
        with daemon.http.stream("GET", f"{daemon.url}{PATH}?owner=second") as response:
            if response.status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError("nobody else gets the instance")


@pytest.mark.parametrize("turns", range(6))
def test_a_router_that_leaves_at_the_moment_of_an_event_leaves(turns: int) -> None:
    """Otherwise its stream would go on without a reader, and no other router get the instance."""
    client: Any = SimpleNamespace(listeners=[], ready=None, stats=None, is_ready=True)
    statuses = InstanceStatuses(Config(), client, Drain(), PrefixDigest())
    written = asyncio.Event()

    async def send(message: Message) -> None:
        if message.get("body"):
            written.set()

    async def leave() -> bool:
        writing = asyncio.create_task(statuses.write(send, "first"))
        await written.wait()
        for _ in range(10):  # until it waits for news
            await asyncio.sleep(0)
        client.listeners[0](stats())
        for _ in range(turns):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait((writing,), timeout=5.0)
        return writing.cancelled()

    assert asyncio.run(leave())


def test_an_owner_has_a_name(daemon: Daemon) -> None:
    assert daemon.get(f"{PATH}?owner=").status_code == 400
    assert daemon.get(f"{PATH}?owner={'x' * 129}").status_code == 400


@contextmanager
def following_as(daemon: Daemon, owner: str) -> Iterator[Iterator[InstanceStatus]]:
    """The statuses for a router that owns the instance."""
    with daemon.http.stream("GET", f"{daemon.url}{PATH}?owner={owner}") as response:
        assert response.status_code == 200
        yield (msgspec.json.decode(line, type=InstanceStatus) for line in response.iter_lines())
