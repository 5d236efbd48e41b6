"""Slow readers: unread data is limited in memory and in time."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

from server.http.http_protocol import BoundedHttp
from server.http.listener import listen
from tests.server.batches.world import official
from tests.server.world import MODEL, PATIENCE_S, TOKENIZER, Daemon, generated, serving
from wire.messages import Abort, Finished, Submit, ToServer

HELLO = TOKENIZER.encode("hello")
SEND_TIMEOUT_S = 0.5
# More than the buffers hold: the two sockets' small ones, and the server's.
NUM_BYTES = 2**20
BURST = 400  # words of an answer that come at once


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections inherit the listening socket's buffer size; the default would hold 4 MiB."""

    def listen_small(host: str, port: int) -> socket.socket:
        listener = listen(host, port)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return listener

    monkeypatch.setattr("tests.server.world.listen", listen_small)


@contextmanager
def asking(daemon: Daemon, request: bytes) -> Iterator[socket.socket]:
    """A client that has sent a request and reads nothing, with as small a buffer as there is."""
    host, port = daemon.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE_S)
        client.connect((host, int(port)))
        client.sendall(request)
        yield client


def completion(**fields: object) -> bytes:
    body = json.dumps({"model": MODEL, "prompt": "hi"} | fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def num_unread(daemon: Daemon) -> int:
    """Bytes that wait in the server's memory."""
    connections = list(daemon.server.server_state.connections)
    return sum(each.transport.get_write_buffer_size() for each in connections)


def is_handed_on(daemon: Daemon, num_words: int) -> bool:
    """Whether so much of an answer has come from the engine, or the server wants no more."""
    return daemon.client.num_generated >= num_words * len(HELLO) or not daemon.drain.num_open


def is_closed(daemon: Daemon) -> bool:
    return not daemon.server.server_state.connections


def read_all(client: socket.socket) -> bytes:
    """All bytes until the connection is aborted."""
    read = b""
    try:
        while part := client.recv(2**20):
            read += part
    except ConnectionResetError:
        pass
    return read


def talkative(submit: Submit) -> list[ToServer]:
    """An answer of as many bytes, without its end."""
    burst = generated(submit.sequence_id, *HELLO * 1000)
    return [burst] * (NUM_BYTES // (1000 * len("hello")))


def test_a_stream_that_is_not_read_is_paused_and_ended(tmp_path: Path) -> None:
    with serving(tmp_path, send_timeout=SEND_TIMEOUT_S) as daemon:
        with asking(daemon, completion(stream=True)) as client:
            (submit,) = daemon.engine.wait_for(Submit)
            most, num_sent = 0, 0
            while num_sent * len("hello") < NUM_BYTES:
                # One after the other: pieces of one loop iteration become one event.
                daemon.engine.send(generated(submit.sequence_id, *HELLO * BURST))
                num_sent += BURST
                daemon.wait_until(lambda: is_handed_on(daemon, num_sent))  # noqa: B023
                most = max(most, num_unread(daemon))
            assert daemon.engine.wait_for(Abort) == [Abort(submit.sequence_id)]
            daemon.wait_until(lambda: daemon.drain.num_open == 0)
            assert len(read_all(client)) < NUM_BYTES
        assert HIGH_WATER_LIMIT < most < 2 * HIGH_WATER_LIMIT
        daemon.wait_until(lambda: is_closed(daemon))


@pytest.mark.parametrize("header", [b"", b"connection: close\r\n"])
def test_the_connection_of_an_unread_whole_answer_is_aborted(tmp_path: Path, header: bytes) -> None:
    def ending(submit: Submit) -> list[ToServer]:
        return [*talkative(submit), Finished(submit.sequence_id, "length")]

    request = completion().replace(b"host: x\r\n", b"host: x\r\n" + header)
    with (
        serving(tmp_path, ending, send_timeout=SEND_TIMEOUT_S) as daemon,
        asking(daemon, request) as client,
    ):
        daemon.wait_until(lambda: num_unread(daemon) > HIGH_WATER_LIMIT)
        daemon.wait_until(lambda: is_closed(daemon))
        assert len(read_all(client)) < NUM_BYTES


def test_the_connection_of_an_unread_file_is_aborted(tmp_path: Path) -> None:
    with serving(tmp_path, send_timeout=SEND_TIMEOUT_S) as daemon:
        with official(daemon) as client:
            content = b"x" * NUM_BYTES
            file = client.files.create(file=("in.jsonl", content), purpose="batch")
        daemon.wait_until(lambda: is_closed(daemon))
        request = f"GET /v1/files/{file.id}/content HTTP/1.1\r\nhost: x\r\n\r\n"
        with asking(daemon, request.encode()) as reader:
            daemon.wait_until(lambda: num_unread(daemon) > 0)
            assert num_unread(daemon) < 4 * HIGH_WATER_LIMIT
            daemon.wait_until(lambda: is_closed(daemon))
            assert len(read_all(reader)) < NUM_BYTES


@dataclass
class Transport:
    """A transport with so many bytes that the client has not read."""

    num_unread: int = 0
    is_cut: bool = False
    closing: bool = False

    def get_write_buffer_size(self) -> int:
        return self.num_unread

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.is_cut = True


def cut_at(
    *num_unread: int, timeout_s: float = 2.0, paused: bool = True, closing: bool = False
) -> int | None:
    """The second at which the connection is aborted, given the unread bytes of each second."""
    transport = Transport(closing=closing)
    connection = BoundedHttp.__new__(BoundedHttp)
    connection.transport = transport  # type: ignore[assignment]
    connection.flow = SimpleNamespace(write_paused=paused)  # type: ignore[assignment]
    for second, number in enumerate(num_unread):
        transport.num_unread = number
        connection.check_reads(timeout_s)
        if transport.is_cut:
            return second
    return None


def test_the_time_is_counted_from_the_last_byte_that_was_read() -> None:
    assert cut_at(9, 9, 9, 9, 9) == 2
    assert cut_at(9, 9, 8, 8, 8, 8, 8) == 4
    assert cut_at(0, 0, 0, 9, 9, 9, 9, 9) == 5


def test_a_client_that_reads_slowly_is_not_aborted() -> None:
    assert cut_at(*range(1000, 900, -1)) is None
    assert cut_at(9, 9, 0, 9, 9, 0, 9, 9) is None


def test_a_connection_without_pending_data_is_not_aborted() -> None:
    assert cut_at(9, 9, 9, 9, 9, paused=False) is None
    assert cut_at(9, 9, 9, 9, 9, paused=False, closing=True) == 2
