"""The answer as a stream: its events, its end, and what a failure looks like."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from server.openai.routes.completions import Completions
from server.text.stop_strings import StopStrings
from tests.server.world import (
    MODEL,
    PATIENCE_S,
    TOKENIZER,
    Daemon,
    events,
    generated,
    saying,
    serving,
)
from wire.messages import Abort, Finished, Submit, ToServer

HI = TOKENIZER.encode("hi")


def failing(submit: Submit) -> list[ToServer]:
    """A script: some text, then the pipeline is gone."""
    return [
        generated(submit.sequence_id, *HI),
        Finished(submit.sequence_id, "error", "The pipeline was lost."),
    ]


def joined(events: list[Any], index: int = 0) -> str:
    choices = [choice for event in events for choice in event["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def test_a_chunk_has_openais_shape(daemon: Daemon) -> None:
    response = daemon.complete(stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *_, last = events(response)
    assert last.pop("id").startswith("cmpl-")
    assert isinstance(last.pop("created"), int)
    assert last.pop("system_fingerprint").startswith("fp_")
    last["choices"][0].pop("text")
    assert last == {
        "object": "text_completion",
        "model": MODEL,
        "choices": [{"index": 0, "logprobs": None, "finish_reason": "stop", "stop_reason": None}],
    }


def test_a_stream_sums_up_to_the_whole_answer(daemon: Daemon) -> None:
    whole = daemon.complete().json()["choices"][0]["text"]
    assert joined(events(daemon.complete(stream=True))) == whole


def test_the_usage_comes_last_and_only_if_asked_for(daemon: Daemon) -> None:
    *chunks, last = events(daemon.complete(stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 7,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert all(chunk["usage"] is None for chunk in chunks)
    without = events(daemon.complete(stream=True, stream_options={"include_usage": False}))
    assert all("usage" not in chunk for chunk in without)


def test_every_choice_of_every_prompt_is_streamed_and_ended(daemon: Daemon) -> None:
    found = events(daemon.complete(stream=True, prompt=["hi", "the"], n=2, echo=True))
    echoes = ["hi", "hi", "the", "the"]
    assert [joined(found, i) for i in range(4)] == [f"{echo}hello world €" for echo in echoes]
    ends = [c["index"] for e in found for c in e["choices"] if c["finish_reason"] == "stop"]
    assert sorted(ends) == [0, 1, 2, 3]


def test_no_token_asked_for_is_a_stream_too(daemon: Daemon) -> None:
    text, end = events(daemon.complete(stream=True, max_tokens=0, echo=True))
    assert (text["choices"][0]["text"], text["choices"][0]["finish_reason"]) == ("hi", None)
    assert (end["choices"][0]["text"], end["choices"][0]["finish_reason"]) == ("", "length")


def test_each_event_may_have_the_usage_so_far(daemon: Daemon) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = events(daemon.complete(stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] > 0
    assert (last["choices"], last["usage"]) == ([], chunks[-1]["usage"])
    alone = {"continuous_usage_stats": True}
    assert all("usage" not in e for e in events(daemon.complete(stream=True, stream_options=alone)))


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stream_that_waits_gets_comments(tmp_path: Path, version: str) -> None:
    body = json.dumps({"model": MODEL, "prompt": "a", "stream": True}).encode()
    head = f"POST /v1/completions HTTP/{version}\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with serving(tmp_path, stream_comment_interval=0.05) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(head.encode() + body)
            received = client.recv(65536)
            while received.count(b": waiting\n\n") < 2:
                received += client.recv(65536)
            (submit,) = daemon.engine.wait_for(Submit)
            daemon.engine.send(*saying("hi")(submit))
            while b"[DONE]" not in received:
                received += client.recv(65536)
    assert received.index(b": waiting") < received.index(b"data: ")
    assert b'"text":"hi' in received or b'"text":"h' in received


def test_text_arrives_while_the_sequence_runs(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, streaming(daemon) as response:
        (submit,) = daemon.engine.wait_for(Submit)
        lines = response.iter_lines()
        for letter in "abc":
            daemon.engine.send(generated(submit.sequence_id, *TOKENIZER.encode(letter)))
            assert f'"text":"{letter}"' in next(line for line in lines if line)
        daemon.engine.send(Finished(submit.sequence_id, "length"))
        assert '"finish_reason":"length"' in next(line for line in lines if line)
        assert next(line for line in lines if line) == "data: [DONE]"


def test_tokens_that_wait_together_share_a_chunk(tmp_path: Path) -> None:
    def burst(submit: Submit) -> list[ToServer]:
        return [generated(submit.sequence_id, *HI, *HI), Finished(submit.sequence_id, "length")]

    with serving(tmp_path, burst) as daemon:
        first, *rest = events(daemon.complete(stream=True))
        assert first["choices"][0]["text"] == "hihi"
        assert joined(rest) == ""


def test_nothing_of_a_stop_string_is_streamed_and_the_engine_is_informed(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, streaming(daemon, stop=["STOP"]) as response:
        (submit,) = daemon.engine.wait_for(Submit)
        for letter in "a STOP b":
            daemon.engine.send(generated(submit.sequence_id, *TOKENIZER.encode(letter)))
        response.read()
        found = events(response)
        assert joined(found) == "a "
        assert found[-1]["choices"][0]["finish_reason"] == "stop"
        assert daemon.engine.wait_for(Abort) == [Abort(submit.sequence_id)]


def test_a_failure_of_the_engine_is_an_error_event(tmp_path: Path) -> None:
    with serving(tmp_path, failing) as daemon:
        response = daemon.complete(stream=True)
        assert response.status_code == 200
        *texts, failure = events(response)
        assert joined(texts) == "hi"
        assert failure["error"] == {
            "message": "The pipeline was lost.",
            "type": "server_error",
            "param": None,
            "code": "internal_error",
        }


def test_a_failure_of_the_engine_is_500_for_a_whole_answer(tmp_path: Path) -> None:
    with serving(tmp_path, failing) as daemon:
        response = daemon.complete()
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "The pipeline was lost."


def test_one_failed_sequence_frees_its_sisters(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon, streaming(daemon, n=3) as response:
        first, second, third = daemon.engine.wait_for(Submit, 3)
        daemon.engine.send(Finished(second.sequence_id, "error", "lost"))
        response.read()
        assert "error" in events(response)[-1]
        freed = daemon.engine.wait_for(Abort, 2)
        assert freed == [Abort(first.sequence_id), Abort(third.sequence_id)]


def test_a_bug_of_ours_ends_a_stream_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(_self: StopStrings, _piece: str) -> tuple[str, bool]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(StopStrings, "push", stumble)
    with serving(tmp_path, saying("hello")) as daemon:
        assert (
            "had an error" in events(daemon.complete(stream=True, stop="x"))[-1]["error"]["message"]
        )
        response = daemon.complete(stop="x")
        assert response.status_code == 500
        assert response.json()["error"]["type"] == "server_error"
    assert "a bug" in caplog.text


def test_a_system_error_before_the_answer_is_not_taken_for_a_client_that_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(Completions, "prepare", fail)
    with serving(tmp_path) as daemon:
        response = daemon.complete()
        assert response.status_code == 500
        assert response.json()["error"]["code"] == "internal_error"


def streaming(daemon: Daemon, **body: Any) -> Any:
    """A streamed request as a context; the answer's head is read on entering."""
    json = {"model": MODEL, "prompt": "hi", "stream": True} | body
    return daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=json)
