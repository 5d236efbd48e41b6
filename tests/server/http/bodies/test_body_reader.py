"""The request-body memory limit: bodies being read are bounded in all, and always released."""

import gc
import socket
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.http.bodies.body_reader import FREE_BYTES, BodyMemory, read_body
from server.openai.fields.sampling import SamplingFields
from tests.server.templates import CHATML, chatty
from tests.server.world import MODEL, PATIENCE_S, Daemon, saying, serving
from wire.messages import Finished, Submit

BODY_BYTES = 100_000


def uploading(daemon: Daemon, stack: ExitStack, path: str, length: int) -> socket.socket:
    """A client that has sent all of its body but the last byte."""
    host, port = daemon.url.removeprefix("http://").split(":")
    client = stack.enter_context(socket.create_connection((host, int(port)), PATIENCE_S))
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n"
    client.sendall(head.encode() + b"x" * (length - 1))
    return client


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/detokenize", "/v1/batches"])
def test_large_bodies_are_refused_while_others_come_in_and_small_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    body_memories: list[BodyMemory] = []

    def one_of(max_bytes: int, max_body_bytes: int) -> BodyMemory:
        body_memories.append(BodyMemory(max_bytes, max_body_bytes))
        return body_memories[-1]

    monkeypatch.setattr("server.app.BodyMemory", one_of)
    held = BODY_BYTES - 1 - FREE_BYTES
    large: dict[str, Any] = {"prompt": "hi", "user": "x" * BODY_BYTES}
    with serving(tmp_path, saying("hello"), max_intake_bytes=2 * held + 1) as daemon:
        (body_memory,) = body_memories
        with ExitStack() as stack:
            first, _ = (uploading(daemon, stack, path, BODY_BYTES) for _ in range(2))
            daemon.wait_until(lambda: body_memory.num_bytes == 2 * held)
            refused = daemon.complete(**large)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert daemon.complete().status_code == 200
            # One is complete, and no JSON; the other leaves.
            first.sendall(b"x")
            assert first.recv(65536).startswith(b"HTTP/1.1 400 ")
            daemon.wait_until(lambda: body_memory.num_bytes == held)
        daemon.wait_until(lambda: body_memory.num_bytes == 0)
        assert daemon.complete(**large).status_code == 200
        assert body_memory.num_bytes == 0


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_the_loop_turns_between_the_reading_of_large_bodies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    turns, read_at, num_bodies = [0], list[int](), 8
    decode = msgspec.json.decode

    def decode_watched(body: bytes) -> Any:
        if len(body) == BODY_BYTES:
            read_at.append(turns[0])
        return decode(body)

    monkeypatch.setattr(msgspec.json, "decode", decode_watched)
    sent = threading.Event()
    tokenizer: Any = chatty(CHATML)
    with serving(tmp_path, tokenizer=tokenizer) as daemon, ExitStack() as stack:

        def turn() -> None:
            turns[0] += 1
            if len(read_at) < num_bodies:
                daemon.loop.call_soon(turn)

        clients = [uploading(daemon, stack, path, BODY_BYTES) for _ in range(num_bodies)]
        daemon.loop.call_soon_threadsafe(sent.wait, PATIENCE_S)
        daemon.loop.call_soon_threadsafe(turn)
        for client in clients:
            client.sendall(b"x")
        sent.set()
        for client in clients:
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert len(set(read_at)) == num_bodies


class Watched(bytes):
    """A body that records its end."""

    num_alive = 0

    def __new__(cls, body: bytes) -> "Watched":
        """One more."""
        cls.num_alive += 1
        return super().__new__(cls, body)

    def __del__(self) -> None:
        """One less."""
        Watched.num_alive -= 1


def requests_in_memory() -> list[SamplingFields]:
    """All that there are, read from bodies or parts of them."""
    # To ask any object for its class may run code of its own.
    return [each for each in gc.get_objects() if issubclass(type(each), SamplingFields)]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("completions", {"prompt": "hi"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_neither_body_nor_messages_outlive_the_reading_of_the_prompt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
    stream: bool,
) -> None:
    async def read_watched(*arguments: Any) -> Watched:
        return Watched(await read_body(*arguments))

    monkeypatch.setattr("server.http.bodies.body_reader.read_body", read_watched)
    tokenizer: Any = chatty(CHATML)
    with serving(tmp_path, tokenizer=tokenizer) as daemon:
        sent = {"model": MODEL, "stream": stream, "return_token_ids": True} | body

        def ask() -> None:
            daemon.http.post(f"{daemon.url}/v1/{path}", json=sent)

        before = requests_in_memory()
        asking = threading.Thread(target=ask)
        asking.start()
        (submit,) = daemon.engine.wait_for(Submit)
        daemon.wait_until(lambda: Watched.num_alive == 0)
        (kept,) = [each for each in requests_in_memory() if not any(each is b for b in before)]
        assert kept.model_fields_set == {"return_token_ids"}
        daemon.engine.send(Finished(submit.sequence_id, "length"))
        asking.join()
