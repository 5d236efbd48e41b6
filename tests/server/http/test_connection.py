"""The connection: a client that goes away, at whatever moment, frees its blocks."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from server.grammar.grammar_checker import GrammarChecker, Verdict
from server.http.bodies.body_reader import announces_more
from server.http.drain import Drain
from server.requests.engine_client import EngineClient
from server.text.tokenizer import MAX_INLINE_CHARACTERS, Tokenizer
from tests.server.templates import CHATML, chatty
from tests.server.world import (
    MODEL,
    PATIENCE_S,
    TOKENIZER,
    Daemon,
    FakeEngine,
    config,
    generated,
    make_app,
    saying,
    serving,
)
from wire.messages import Abort, Submit

HELLO = TOKENIZER.encode("hello")


def connect(daemon: Daemon, path: str = "completions", **body: Any) -> socket.socket:
    """A client that has sent its request and may vanish."""
    host, port = daemon.url.removeprefix("http://").split(":")
    client = socket.create_connection((host, int(port)), PATIENCE_S)
    prompt = {"prompt": "hi"} if path == "completions" else {}
    payload = json.dumps({"model": MODEL} | prompt | body).encode()
    head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(payload)}\r\n\r\n"
    client.sendall(head.encode() + payload)
    return client


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_the_queue_is_aborted(tmp_path: Path, stream: bool) -> None:
    with serving(tmp_path) as daemon:
        with connect(daemon, stream=stream, n=2):
            submits = daemon.engine.wait_for(Submit, 2)
        aborts = daemon.engine.wait_for(Abort, 2)
        assert [a.sequence_id for a in aborts] == [s.sequence_id for s in submits]
        daemon.wait_until(lambda: daemon.drain.num_open == 0)
        assert daemon.client.num_queued == 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_between_tokens_is_aborted(tmp_path: Path, stream: bool) -> None:
    with serving(tmp_path) as daemon:
        with connect(daemon, stream=stream) as client:
            (submit,) = daemon.engine.wait_for(Submit)
            daemon.engine.send(generated(submit.sequence_id, *HELLO))
            if stream:
                seen = b""
                while b"hello" not in seen:
                    seen += client.recv(4096)
            daemon.wait_until(lambda: daemon.client.num_generated > 0)
        assert daemon.engine.wait_for(Abort) == [Abort(submit.sequence_id)]


def test_a_client_that_reads_nothing_and_leaves_is_aborted(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        client = connect(daemon, stream=True, ignore_eos=True, max_tokens=60)
        with client:
            (submit,) = daemon.engine.wait_for(Submit)
            for _ in range(200):  # far more than socket buffers would need to be noticed
                daemon.engine.send(generated(submit.sequence_id, *HELLO * 50))
            daemon.wait_until(lambda: daemon.client.num_generated >= 200 * len(HELLO) * 50)
        assert daemon.engine.wait_for(Abort) == [Abort(submit.sequence_id)]


@pytest.mark.parametrize("stream", [True, False])
def test_an_http_1_0_client_reads_to_the_end_of_the_connection(
    tmp_path: Path, *, stream: bool
) -> None:
    body = json.dumps({"model": MODEL, "prompt": "a", "max_tokens": 3, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.0\r\ncontent-length: {len(body)}\r\n\r\n"
    with serving(tmp_path, saying("abc")) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(head.encode() + body)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
    head_lines, _, sent = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head_lines
    assert b"connection: close" in head_lines
    if stream:
        assert sent.startswith(b"data: {")
        assert sent.endswith(b"data: [DONE]\n\n")
        assert all(event.startswith(b"data: ") for event in sent.strip().split(b"\n\n"))
    else:
        assert json.loads(sent)["choices"][0]["text"] == "abc"


def half_a_request(path: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n"
    form = "content-type: multipart/form-data; boundary=b\r\n" if path == "/v1/files" else ""
    return f"{head}{form}\r\n--b".encode()


def test_a_client_that_leaves_while_it_sends_is_counted_and_no_bug(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(half_a_request("/v1/completions"))
        counted = 'tdpipe_requests_total{model_name="little",outcome="disconnect"} 1.0'
        daemon.wait_until(lambda: counted in httpx.get(f"{daemon.url}/metrics").text)
    assert "Traceback" not in caplog.text
    assert "Exception" not in caplog.text


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/batches", "/v1/files"])
def test_a_client_that_leaves_while_it_sends_is_a_499_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    caplog.set_level("INFO", "tdpipe.access")
    with serving(tmp_path) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(half_a_request(path))
        daemon.wait_until(lambda: f"POST {path} 499" in caplog.text)
    assert "Exception" not in caplog.text


def test_a_body_that_does_not_come_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.http.bodies.body_reader.BODY_TIMEOUT_S", 0.05)
    with serving(tmp_path) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(half_a_request("/v1/completions"))
            answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"request_timeout" in answer


def announcing(length: str) -> Request:
    """A request with this for its body's length."""
    headers = [(b"content-length", length.encode("latin-1"))]
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers})


@pytest.mark.parametrize("length", ["101", "0101", "9" * 5_000, "0" * 5_000 + "101"])
def test_a_length_with_any_number_of_digits_is_compared(length: str) -> None:
    assert announces_more(announcing(length), 100)


@pytest.mark.parametrize("length", ["100", "0100", "0" * 5_000 + "100", "0", "", "²", "-1", "1e9"])
def test_what_is_no_longer_or_no_number_announces_no_more(length: str) -> None:
    assert not announces_more(announcing(length), 100)


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/files"])
def test_a_length_of_many_digits_is_read(tmp_path: Path, path: str) -> None:
    rest = half_a_request(path).replace(b"content-length: 99", b"content-length: %b3")
    with serving(tmp_path) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(rest.replace(b"%b", b"0" * 5_000))
            answer = client.recv(65536)
    assert answer.startswith(b"HTTP/1.1 400 ")


class Gate:
    """Work in a thread that waits at it until it is opened."""

    def __init__(self) -> None:
        self.is_reached, self._opened = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.is_reached.set()
        assert self._opened.wait(PATIENCE_S)

    def open(self) -> None:
        self._opened.set()


class GatedTokenizer(Tokenizer):
    """Reads texts only once the gate is open."""

    gate: Gate

    def encode(self, text: str) -> list[int]:
        self.gate.wait()
        return super().encode(text)

    encode_plain = encode


def leave_at(daemon: Daemon, gate: Gate, path: str = "completions", **body: Any) -> None:
    """Ask, and leave when the gate is reached; nothing is left then, and nothing was submitted."""
    with connect(daemon, path=path, **body):
        assert gate.is_reached.wait(PATIENCE_S)
        assert daemon.drain.num_open == 1
    daemon.wait_until(lambda: daemon.drain.num_open == 0)
    gate.open()
    daemon.engine.script = saying("hello")
    assert daemon.complete().json()["choices"][0]["text"] == "hello"
    assert len(daemon.engine.wait_for(Submit)) == 1
    left = daemon.get("/metrics").text
    assert 'tdpipe_requests_total{model_name="little",outcome="disconnect"} 1.0' in left


LONG = "x" * (MAX_INLINE_CHARACTERS + 1)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": LONG, "n": 8}),
        ("completions", {"prompt": [LONG] * 3, "stream": True}),
        ("chat/completions", {"messages": [{"role": "user", "content": LONG}]}),
    ],
)
def test_a_client_that_leaves_while_its_prompt_is_read_is_forgotten(
    tmp_path: Path, path: str, body: dict[str, Any]
) -> None:
    tokenizer: Any = chatty(CHATML)
    with serving(tmp_path, tokenizer=tokenizer) as daemon:
        tokenizer.__class__, tokenizer.gate = GatedTokenizer, Gate()
        leave_at(daemon, tokenizer.gate, path, **body)


def test_a_client_that_leaves_while_its_grammar_is_checked_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()

    def check(_self: GrammarChecker, _grammar: str) -> Verdict:
        gate.wait()
        return Verdict("")

    monkeypatch.setattr(GrammarChecker, "check", check)
    with serving(tmp_path) as daemon:
        leave_at(daemon, gate, n=8, response_format={"type": "json_object"})


@pytest.mark.parametrize("num_begun", [0, 3, 8])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_all_of_its_choices(
    tmp_path: Path, stream: bool, num_begun: int
) -> None:
    with serving(tmp_path) as daemon:
        with connect(daemon, stream=stream, n=8):
            submits = daemon.engine.wait_for(Submit, 8)
            for submit in submits[:num_begun]:
                daemon.engine.send(generated(submit.sequence_id, *HELLO))
            daemon.wait_until(lambda: daemon.client.num_queued == 8 - num_begun)
        aborts = daemon.engine.wait_for(Abort, 8)
        assert [a.sequence_id for a in aborts] == [s.sequence_id for s in submits]
        daemon.wait_until(lambda: daemon.drain.num_open == 0)
        assert (daemon.client.num_queued, daemon.client.num_queued_tokens) == (0, 0)


def test_a_client_that_leaves_affects_no_other(tmp_path: Path) -> None:
    with serving(tmp_path) as daemon:
        with connect(daemon):
            (gone,) = daemon.engine.wait_for(Submit)
        daemon.engine.wait_for(Abort)
        daemon.engine.script = saying("hello")
        assert daemon.complete().json()["choices"][0]["text"] == "hello"
        assert daemon.engine.wait_for(Abort) == [Abort(gone.sequence_id)]


class Client:
    """An ASGI client; `block` says at which message it stops taking any more."""

    def __init__(self, body: dict[str, Any], blocks: Callable[[dict[str, Any]], bool]) -> None:
        self.is_stuck = asyncio.Event()
        self.left = asyncio.Event()
        self._body = json.dumps({"model": MODEL, "prompt": "hi"} | body).encode()
        self._blocks = blocks
        self._was_read = False

    async def receive(self) -> dict[str, Any]:
        if not self._was_read:
            self._was_read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        if self._blocks(message):
            self.is_stuck.set()
            await asyncio.Event().wait()


SCOPE = {
    "type": "http",
    "asgi": {"version": "3.0", "spec_version": "2.3"},
    "http_version": "1.1",
    "method": "POST",
    "path": "/v1/completions",
    "raw_path": b"/v1/completions",
    "root_path": "",
    "query_string": b"",
    "headers": [],
    "scheme": "http",
    "server": ("localhost", 80),
    "client": ("localhost", 1),
}


@pytest.mark.parametrize(
    ("stream", "message_type"),
    [
        (True, "http.response.start"),
        (True, "http.response.body"),
    ],
)
def test_a_client_that_vanishes_inside_a_send_is_aborted(
    tmp_path: Path, stream: bool, message_type: str
) -> None:
    settings = config(tmp_path)
    address = settings.runtime.server_address
    engine = FakeEngine(address, lambda s: [generated(s.sequence_id, *HELLO)])

    async def run() -> None:
        client = EngineClient(address)
        drain = Drain()
        app, *_ = make_app(settings, client, drain)
        receiving = asyncio.create_task(client.run())
        await asyncio.wait_for(client.wait_ready(), PATIENCE_S)
        web = Client({"stream": stream}, lambda message: message["type"] == message_type)
        answering = asyncio.create_task(app(dict(SCOPE), web.receive, web.send))  # type: ignore[arg-type]
        await asyncio.wait_for(web.is_stuck.wait(), PATIENCE_S)
        assert drain.num_open == 1
        web.left.set()
        await asyncio.wait_for(answering, PATIENCE_S)
        assert drain.num_open == 0
        receiving.cancel()
        await asyncio.wait([receiving])

    try:
        asyncio.run(run())
        (submit,) = engine.wait_for(Submit)
        assert engine.wait_for(Abort) == [Abort(submit.sequence_id)]
    finally:
        engine.close()


def test_a_send_that_fails_is_a_client_that_left(tmp_path: Path) -> None:
    settings = config(tmp_path)
    address = settings.runtime.server_address
    engine = FakeEngine(address, lambda s: [generated(s.sequence_id, *HELLO)])

    async def broken_send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            raise BrokenPipeError

    async def run() -> None:
        client = EngineClient(address)
        app, *_ = make_app(settings, client, Drain())
        receiving = asyncio.create_task(client.run())
        await asyncio.wait_for(client.wait_ready(), PATIENCE_S)
        web = Client({"stream": True}, lambda _: False)
        answering = app(dict(SCOPE), web.receive, broken_send)  # type: ignore[arg-type]
        await asyncio.wait_for(answering, PATIENCE_S)
        receiving.cancel()
        await asyncio.wait([receiving])

    try:
        asyncio.run(run())
        assert len(engine.wait_for(Abort)) == 1
    finally:
        engine.close()
