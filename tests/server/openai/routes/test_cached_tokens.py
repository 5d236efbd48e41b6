"""Cached tokens in usage, and the salt that separates prefixes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.openai.chatting import post, stream
from tests.server.templates import QWEN, chatty, with_long_context
from tests.server.world import MODEL, Daemon, events, saying, serving
from wire.messages import PrefixHit, Submit, ToServer


def with_hits(submit: Submit) -> list[ToServer]:
    """A script: the first choice of a prompt finds 1 token, the next ones 2, 3, ..."""
    hit = PrefixHit(submit.sequence_id, 1 + submit.sequence_id % 4)
    return [hit, *saying("hello")(submit)]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path, with_hits, tokenizer=chatty(QWEN)) as daemon:
        yield with_long_context(daemon)


def cached(usage: dict[str, Any]) -> int:
    return int(usage["prompt_tokens_details"]["cached_tokens"])


def test_every_prompt_counts_once_with_its_first_choice(daemon: Daemon) -> None:
    first = daemon.client.next_ids(1) + 1
    usage = daemon.complete(prompt=["hi", "the"], n=2).json()["usage"]
    assert cached(usage) == 2 + first % 4 + (first + 2) % 4


def test_streams_and_all_endpoints_tell_the_cached_tokens(daemon: Daemon) -> None:
    chunks = events(daemon.complete(stream=True, stream_options={"include_usage": True}))
    assert cached(chunks[-1]["usage"]) > 0
    assert cached(post(daemon).json()["usage"]) > 0
    assert cached(stream(daemon, stream_options={"include_usage": True})[-1]["usage"]) > 0
    body = {"model": MODEL, "input": "hi"}
    usage = daemon.http.post(f"{daemon.url}/v1/responses", json=body).json()["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] > 0


def test_a_choice_that_a_stop_string_ends_tells_them_too(daemon: Daemon) -> None:
    body = daemon.complete(stop="ell").json()
    assert body["choices"][0]["text"] == "h"
    assert cached(body["usage"]) > 0


@pytest.mark.parametrize("path", ["completions", "chat/completions", "responses"])
def test_the_salt_reaches_the_engine(daemon: Daemon, path: str) -> None:
    body = {
        "completions": {"prompt": "hi"},
        "chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
        "responses": {"input": "hi"},
    }[path]
    salts = []
    for more in ({}, {"cache_salt": "tenant ü"}, {"cache_salt": None}):
        response = daemon.http.post(
            f"{daemon.url}/v1/{path}", json={"model": MODEL, **body, **more}
        )
        assert response.status_code == 200, response.text
        salts.append(daemon.engine.wait_for(Submit, len(salts) + 1)[-1].cache_salt)
    assert salts == ["", "tenant ü", ""]
    for wrong in ("", 7, "x" * 2000):
        refused = daemon.http.post(
            f"{daemon.url}/v1/{path}", json={"model": MODEL, **body, "cache_salt": wrong}
        )
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == "cache_salt"


def test_the_model_is_the_served_one_by_default(daemon: Daemon) -> None:
    response = daemon.http.post(f"{daemon.url}/v1/completions", json={"prompt": "hi"})
    assert response.status_code == 200
    assert response.json()["model"] == MODEL
