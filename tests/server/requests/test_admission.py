"""The admission: a full queue says so at once, and offline work fills none."""

import json
from pathlib import Path
from typing import Any

import pytest

from server.text.tokenizer import Tokenizer
from tests.server.batches.world import begin, lines, official
from tests.server.templates import CHATML, chatty
from tests.server.world import MODEL, TOKENIZER, Daemon, generated, saying, serving, silent
from wire.messages import Finished, Submit

HI = TOKENIZER.encode("hi")


def wait_in_queue(daemon: Daemon, **body: Any) -> Any:
    """A request that waits for its first token, as a context."""
    fields = {"model": MODEL, "prompt": "hi", "stream": True} | body
    return daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=fields)


def test_tokens_of_prompts_fill_the_queue_until_the_first_token(tmp_path: Path) -> None:
    with (
        serving(tmp_path, max_num_queued_tokens=10) as daemon,
        wait_in_queue(daemon, prompt=[5, 5, 5], n=2),
    ):
        first, second = daemon.engine.wait_for(Submit, 2)
        refused = daemon.complete(prompt=[5] * 5)
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert "10 tokens of prompts" in refused.json()["error"]["message"]
        assert 'tdpipe_queued_prompt_tokens{model_name="little"} 6.0' in daemon.get("/metrics").text
        daemon.engine.script = saying("hello")
        assert daemon.complete(prompt=[5] * 4).status_code == 200
        daemon.engine.send(generated(first.sequence_id, *HI))
        daemon.wait_until(lambda: daemon.client.num_queued_tokens == 3)
        assert daemon.complete(prompt=[5] * 5).status_code == 200
        daemon.engine.send(Finished(second.sequence_id, "length"))
        daemon.wait_until(lambda: daemon.client.num_queued_tokens == 0)


def test_more_tokens_than_the_queue_holds_are_429_that_no_retry_helps(tmp_path: Path) -> None:
    with serving(tmp_path, max_num_queued_tokens=10) as daemon:
        response = daemon.complete(prompt=[5] * 4, n=3)
        assert response.status_code == 429
        assert response.headers["x-should-retry"] == "false"
        assert "12 tokens" in response.json()["error"]["message"]
        assert not daemon.engine.wait_for(Submit, 0)


class Unread(Tokenizer):
    """Reads no prompt."""

    def encode(self, text: str) -> list[int]:
        raise AssertionError(f"a prompt was read: {text}")

    encode_plain = encode


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": "hi"}),
        ("completions", {"prompt": "hi", "response_format": {"type": "json_object"}}),
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
def test_a_full_queue_refuses_before_anything_is_tokenized(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    tokenizer: Any = chatty(CHATML)
    with (
        serving(tmp_path, max_num_queued_reqs=1, tokenizer=tokenizer) as daemon,
        wait_in_queue(daemon),
    ):
        daemon.engine.wait_for(Submit)
        tokenizer.__class__ = Unread
        response = daemon.http.post(f"{daemon.url}/v1/{path}", json={"model": MODEL} | body)
        assert response.status_code == 429


def test_batches_never_make_an_online_request_be_refused(tmp_path: Path) -> None:
    with (
        serving(tmp_path, max_num_queued_reqs=1, max_num_queued_tokens=4) as daemon,
        official(daemon) as client,
    ):
        begin(client, lines(5))
        assert all(submit.offline for submit in daemon.engine.wait_for(Submit, 5))
        daemon.engine.script = saying("hello")
        assert daemon.complete().status_code == 200


@pytest.mark.parametrize("fields", [{"service_tier": "flex"}, {"priority": 1}])
def test_low_priority_requests_have_a_queue_of_their_own(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    with serving(tmp_path, max_num_queued_reqs=1) as daemon:
        with wait_in_queue(daemon, **fields):
            daemon.engine.wait_for(Submit)
            assert daemon.complete(**fields).status_code == 429
            daemon.engine.script = saying("hello")
            assert daemon.complete().status_code == 200
            daemon.engine.script = silent
            with wait_in_queue(daemon):
                daemon.engine.wait_for(Submit, 3)
                assert daemon.complete().status_code == 429
        daemon.wait_until(lambda: daemon.client.num_queued == 0)
        with wait_in_queue(daemon):
            daemon.engine.wait_for(Submit, 4)
            daemon.engine.script = saying("hello")
            assert daemon.complete(**fields).status_code == 200


def test_a_full_queue_does_not_hold_up_batches(tmp_path: Path) -> None:
    with (
        serving(tmp_path, max_num_queued_reqs=1) as daemon,
        official(daemon) as client,
        wait_in_queue(daemon),
    ):
        daemon.engine.wait_for(Submit)
        begin(client, lines(3))
        assert len(daemon.engine.wait_for(Submit, 4)) == 4


def test_requests_that_want_no_token_are_answered_beside_a_full_queue(tmp_path: Path) -> None:
    with serving(tmp_path, max_num_queued_reqs=1) as daemon, wait_in_queue(daemon):
        daemon.engine.wait_for(Submit)
        response = daemon.complete(max_tokens=0, echo=True)
        assert json.loads(response.text)["choices"][0]["text"] == "hi"
