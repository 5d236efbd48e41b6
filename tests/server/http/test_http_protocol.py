"""The HTTP protocol: malformed requests get the error body, and request heads are limited."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from server.http import http_protocol
from tests.server.world import PATIENCE_S, Daemon, serving

LIMIT = http_protocol.MAX_HEAD_BYTES


def connect(daemon: Daemon) -> socket.socket:
    host, port = daemon.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), PATIENCE_S)


def read(client: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    answer = b""
    try:
        while part := client.recv(65536):
            answer += part
    except ConnectionResetError:  # the server closed it while the client was still sending
        pass
    return answer


def error_in(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"x-request-id: " in head
    assert b"content-type: application/json" in head
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


@pytest.mark.parametrize(
    "request_", [b"hello\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nno colon\r\n\r\n"]
)
def test_malformed_http_is_400(daemon: Daemon, request_: bytes) -> None:
    with connect(daemon) as client:
        client.sendall(request_)
        answer = read(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert error_in(answer)["code"] == "invalid_http"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nx: " + b"y" * LIMIT + b"\r\n\r\n",
        b"GET /" + b"y" * LIMIT + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * LIMIT + b"\r\n",
        b"GET / HTTP/1.1\r\nx: " + b"y" * 2 * LIMIT,  # and no end
        b"GET /" + b"y" * 2 * LIMIT,
    ],
    ids=["header", "target", "headers", "endless header", "endless target"],
)
def test_a_head_that_is_too_long_is_431(daemon: Daemon, head: bytes) -> None:
    with connect(daemon) as client:
        client.sendall(head)
        answer = read(client)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert error_in(answer)["code"] == "request_head_too_large"


def test_a_head_within_the_bound_is_served(daemon: Daemon) -> None:
    response = daemon.http.get(f"{daemon.url}/v1/models", headers={"x": "y" * (LIMIT - 1000)})
    assert response.status_code == 200
    again = daemon.http.get(f"{daemon.url}/v1/models", headers={"x": "y" * (LIMIT - 1000)})
    assert again.status_code == 200, "each request of a connection is counted by itself"


def test_a_head_in_small_parts_is_counted_once(daemon: Daemon) -> None:
    head = b"GET /v1/models HTTP/1.1\r\nconnection: close\r\nhost: x\r\n"
    head += b"".join(b"x-%d: " % i + b"y" * 1000 + b"\r\n" for i in range(LIMIT // 1100))
    with connect(daemon) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(head), 700):
            client.sendall(head[start : start + 700])
        client.sendall(b"\r\n")
        assert read(client).startswith(b"HTTP/1.1 200 ")


def test_a_long_body_before_the_next_request_is_not_counted(daemon: Daemon) -> None:
    body = json.dumps({"prompt": "x" * 2 * LIMIT}).encode()
    first = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body)
    with connect(daemon) as client:
        client.sendall(first + body + b"GET /v1/models HTTP/1.1\r\nhost: x\r\n")
        client.sendall(b"connection: close\r\n\r\n")
        answers = read(client)
    assert answers.count(b"HTTP/1.1 200 ") == 2


def test_a_late_head_is_408_and_an_idle_connection_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    with serving(tmp_path) as daemon:
        with connect(daemon) as client:
            client.sendall(b"GET / HTTP/1.1\r\nx: ")
            answer = read(client)
        with connect(daemon) as idle:
            assert read(idle) == b""
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_in(answer)["code"] == "request_timeout"


def test_the_clock_stops_with_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    monkeypatch.setattr("server.http.bodies.body_reader.BODY_TIMEOUT_S", 0.2)
    with serving(tmp_path) as daemon, connect(daemon) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{")
        answer = client.recv(65536)
    assert b"The request's body was not received" in answer


def test_malformed_bytes_after_a_request_do_not_cut_its_answer(tmp_path: Path) -> None:
    body = json.dumps({"model": "little", "prompt": "hi", "stream": True}).encode()
    with serving(tmp_path) as daemon, connect(daemon) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        begun = client.recv(65536)
        client.sendall(b"malformed\r\n\r\n")
        rest = read(client)
    assert begun.startswith(b"HTTP/1.1 200 ")
    assert b"HTTP/1.1" not in rest


def test_an_offered_upgrade_is_ignored_without_a_warning(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    offer = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert daemon.http.get(f"{daemon.url}/v1/models", headers=offer).status_code == 200
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


@pytest.mark.parametrize("is_read", [False, True], ids=["at once", "while it is read"])
def test_a_malformed_chunked_body_is_400(daemon: Daemon, *, is_read: bool) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
    with connect(daemon) as client:
        if not is_read:
            client.sendall(head + b"\r\n1\r\n{\r\nno number\r\n")
        else:
            client.sendall(head + b"expect: 100-continue\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 100 "), "it asks for the body"
            client.sendall(b"1\r\n{\r\nno number\r\n")
        answer = read(client)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert error_in(answer)["code"] == "invalid_http"
