"""The access: ids on every answer, a line for every request that matters."""

import json
import logging
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.types import Message, Receive, Scope, Send

from daemon.observability.logs import JsonFormatter
from server.http.middleware import Access
from tests.server.world import MODEL, Daemon, generated, saying, serving
from wire.messages import Finished, Submit, ToServer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 200),
        ("GET", "/health", 200),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/completions", 400),
        ("HEAD", "/v1/models", 200),
    ],
)
def test_every_answer_bears_the_client_s_id(
    daemon: Daemon, method: str, path: str, status: int
) -> None:
    response = daemon.http.request(method, daemon.url + path, headers={"X-Request-Id": "mine-1"})
    assert response.status_code == status
    assert response.headers.get_list("x-request-id") == ["mine-1"]


def test_a_stream_bears_it_too(daemon: Daemon) -> None:
    response = daemon.complete(stream=True)
    assert len(response.headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize(
    "given", ["", "a b", "x" * 129, "é", "a\tb", 'a"; evil'], ids=lambda value: value[:9]
)
def test_an_id_that_is_not_fit_is_replaced(daemon: Daemon, given: str) -> None:
    headers = [("x-request-id", given.encode())]
    response = daemon.http.get(f"{daemon.url}/v1/models", headers=headers)
    (returned,) = response.headers.get_list("x-request-id")
    assert returned != given
    assert len(returned) == 32


def test_ids_of_our_own_differ(daemon: Daemon) -> None:
    ids = {daemon.get("/v1/models").headers["x-request-id"] for _ in range(20)}
    assert len(ids) == 20


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "tdpipe.access"]


def test_a_request_is_a_line_and_probes_are_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path, saying("hello")) as daemon:
        for path in ("/health", "/live", "/ready", "/metrics"):
            daemon.get(path)
        daemon.http.get(f"{daemon.url}/v1/models?secret=1", headers={"x-request-id": "mine"})
        daemon.complete(stream=True)
        daemon.get("/a%0Ab")
        daemon.wait_until(lambda: len(lines(caplog)) == 3)
    returned = [record.getMessage() for record in lines(caplog)]
    heads = {" ".join(line.split(" ")[1:4]) for line in returned}
    assert heads == {"GET /v1/models 200", "POST /v1/completions 200", "GET /a%0Ab 404"}
    assert all(line.startswith("127.0.0.1:") for line in returned)
    assert returned[0].endswith("s mine")
    assert not any("secret" in line for line in returned)


def test_a_line_in_json_has_its_parts_as_keys(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path) as daemon:
        daemon.http.get(f"{daemon.url}/v1/models", headers={"x-request-id": "mine"})
        daemon.wait_until(lambda: len(lines(caplog)) == 1)
    line = json.loads(JsonFormatter("server").format(lines(caplog)[0]))
    assert line["method"] == "GET"
    assert line["path"] == "/v1/models"
    assert line["status"] == 200
    assert 0 <= line["seconds"] < 10
    assert line["request_id"] == "mine"


def test_a_generation_s_line_has_its_tokens_and_the_time_to_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path, saying("hello")) as daemon:
        usage = daemon.complete().json()["usage"]
        daemon.complete(stream=True)
        daemon.wait_until(lambda: len(lines(caplog)) == 2)
    for record in lines(caplog):
        line = json.loads(JsonFormatter("server").format(record))
        assert line["prompt_tokens"] == usage["prompt_tokens"]
        assert line["output_tokens"] == usage["completion_tokens"]
        assert 0 <= line["ttft_s"] <= line["seconds"] + 0.001
        assert "outcome" not in line


def test_a_stream_whose_client_leaves_is_no_success(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path) as daemon:
        body = {"model": MODEL, "prompt": "hi", "stream": True, "max_tokens": 9}
        with daemon.http.stream("POST", f"{daemon.url}/v1/completions", json=body) as answer:
            assert answer.status_code == 200
            (submit,) = daemon.engine.wait_for(Submit)
            daemon.engine.send(*(generated(submit.sequence_id, token) for token in (50, 51)))
            received = answer.iter_lines()
            while not next(received):
                pass
            daemon.wait_until(lambda: daemon.client.num_generated == 2)
        daemon.wait_until(lambda: len(lines(caplog)) == 1)
    line = json.loads(JsonFormatter("server").format(lines(caplog)[0]))
    assert (line["status"], line["outcome"]) == (499, "disconnect")
    assert 1 <= line["output_tokens"] <= 2
    assert " outcome=disconnect " in lines(caplog)[0].getMessage()


def test_a_stream_that_fails_says_so_beside_its_status(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(submit: Submit) -> list[ToServer]:
        return [generated(submit.sequence_id, 5), Finished(submit.sequence_id, "error", "broken")]

    caplog.set_level(logging.INFO)
    with serving(tmp_path, fails) as daemon:
        assert daemon.complete(stream=True).status_code == 200
        daemon.wait_until(lambda: len(lines(caplog)) == 1)
    assert " 200 " in lines(caplog)[0].getMessage()
    assert " outcome=error " in lines(caplog)[0].getMessage()


def test_an_invalid_request_says_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path) as daemon:
        assert daemon.complete(n=0).status_code == 400
        daemon.wait_until(lambda: len(lines(caplog)) == 1)
    assert " reason=invalid_value " in lines(caplog)[0].getMessage()


def test_a_flood_of_refusals_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path, ready=False) as daemon:
        assert {daemon.complete().status_code for _ in range(20)} == {503}
        daemon.wait_until(lambda: len(lines(caplog)) == 1)
    assert " reason=model_not_ready " in lines(caplog)[0].getMessage()


@pytest.mark.parametrize(
    ("trusted", "forwarded", "client"),
    [
        ("127.0.0.1", "10.1.2.3", "10.1.2.3 "),
        ("10.0.0.0/8", "10.1.2.3", "127.0.0.1:"),
        ("127.0.0.1", "a GET /x", "a?GET?/x "),
    ],
)
def test_the_client_is_what_a_trusted_proxy_says(
    trusted: str, forwarded: str, client: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path, forwarded_allow_ips=trusted) as daemon:
        daemon.http.get(f"{daemon.url}/v1/models", headers={"x-forwarded-for": forwarded})
        daemon.wait_until(lambda: len(lines(caplog)) == 1)
    assert lines(caplog)[0].getMessage().startswith(client)


def test_without_an_access_log_there_is_no_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path, access_log=False) as daemon:
        assert daemon.get("/v1/models").headers["x-request-id"]
    assert lines(caplog) == []


def run(app: Any, method: str = "GET") -> list[Message]:
    """What the app sends behind Access; an exception of it is expected to come through."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": method, "path": "/x", "raw_path": b"/x", "headers": []}

    async def call() -> None:
        with pytest.raises(LookupError):
            await Access(app, root_path="", access_log=True)(scope, receive, send)

    anyio.run(call)
    return sent


def test_a_bug_behind_it_is_500_in_the_envelope() -> None:
    async def bug(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise LookupError("a bug")

    start, body = run(bug)
    assert start["status"] == 500
    assert b"x-request-id" in dict(start["headers"])
    assert json.loads(body["body"])["error"]["code"] == "internal_error"
    assert b"a bug" not in body["body"]


def test_a_bug_after_the_answer_has_begun_is_not_answered_twice() -> None:
    async def bug(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise LookupError("a bug")

    assert [message["type"] for message in run(bug)] == ["http.response.start"]


def test_head_is_get_without_a_body(daemon: Daemon) -> None:
    get, head = daemon.get("/v1/models"), daemon.http.head(f"{daemon.url}/v1/models")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers["content-length"] == get.headers["content-length"]
    refused = daemon.http.head(f"{daemon.url}/v1/completions")
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert daemon.get("/v1/models").status_code == 200  # the connection is in order


def test_requests_are_logged_only_when_asked_and_never_with_their_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(tmp_path, saying("hello")) as daemon:
        daemon.complete()
    assert not [record for record in caplog.records if record.name == "tdpipe.requests"]
    with serving(tmp_path, saying("an answer"), log_requests=True) as daemon:
        answer = daemon.complete(prompt="a secret", stop=["another"], max_tokens=9, temperature=0)
    (line,) = [record for record in caplog.records if record.name == "tdpipe.requests"]
    text = line.getMessage()
    assert text.startswith(f"{answer.headers['x-request-id']} {answer.json()['id']} ")
    assert "max_tokens=9" in text
    assert "temperature=0" in text
    returned = JsonFormatter("server").format(line)
    assert json.loads(returned)["stop_strings"] == 1
    assert not any(word in returned for word in ("secret", "another", "answer"))
