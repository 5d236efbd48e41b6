"""The direct writer: nothing piles up and nothing is lost where a client reads slowly."""

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from server.http.errors import ApiError, failed
from server.openai.rendering.sse import DirectWriter
from server.requests.generation import MAX_INLINE_LOGPROBS, Piece
from server.requests.logprobs import TokenLogprobs
from tests.server.world import MODEL, PATIENCE_S, TOKENIZER, generated, serving
from wire.messages import Abort, Submit

HELLO = TOKENIZER.encode("hello")


# A token with so many likeliest ones that it takes long to render.
MUCH = TokenLogprobs(5, -1.0, 1, tuple((5, -1.0) for _ in range(MAX_INLINE_LOGPROBS)))


class FakeConnection:
    """A connection whose client reads on request."""

    def __init__(self) -> None:
        self.is_paused = False
        self.written: list[bytes] = []
        self._reads = asyncio.Event()

    def write(self, part: bytes) -> None:
        assert not self.is_paused
        self.written.append(part)

    async def drain(self) -> None:
        while self.is_paused:
            await self._reads.wait()

    def read(self) -> None:
        self.is_paused = False
        self._reads.set()


class FakeGeneration:
    """A generation of one choice; each letter that arrives is a piece."""

    def __init__(self) -> None:
        self.num_unfinished = 1
        self.failure: ApiError | None = None
        self.arrived = ""
        self.listener: Callable[[], None] | None = None
        self.is_rendered = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        return not self.num_unfinished or self.failure is not None

    def listen(self, listener: Callable[[], None] | None) -> None:
        self.listener = listener

    def take_pieces(self) -> list[Piece]:
        arrived, self.arrived = self.arrived, ""
        if not arrived and self.failure is not None:
            raise self.failure
        if "." in arrived:
            self.num_unfinished = 0
        logprobs = [MUCH] if "!" in arrived else ()
        return [Piece(0, arrived, logprobs=logprobs)] if arrived else []

    async def render(self, _num_logprobs: int, work: Callable[[], bytes]) -> bytes:
        await self.is_rendered.wait()
        return work()

    def put(self, text: str) -> None:
        self.arrived += text
        assert self.listener is not None
        self.listener()


class Letters:
    """A rendering: the text itself."""

    def chunk(self, piece: Piece) -> bytes:
        return piece.text.encode()


async def writing(
    play: Callable[[FakeGeneration, FakeConnection], Any],
) -> FakeConnection:
    """What a play leaves on the connection."""
    generation, connection = FakeGeneration(), FakeConnection()
    writer = DirectWriter(generation, Letters(), connection)  # type: ignore[arg-type]
    running = asyncio.create_task(writer.run())
    await asyncio.sleep(0)
    play(generation, connection)
    try:
        await asyncio.wait_for(running, PATIENCE_S)
    finally:
        assert generation.listener is None
    return connection


def test_what_arrives_is_written_in_the_same_turn() -> None:
    def play(generation: FakeGeneration, connection: FakeConnection) -> None:
        for letter in "ab":
            generation.put(letter)
        assert connection.written == [b"a", b"b"]
        generation.put(".")

    assert asyncio.run(writing(play)).written == [b"a", b"b", b"."]


def test_nothing_is_written_to_a_client_that_does_not_read_and_nothing_is_lost() -> None:
    def play(generation: FakeGeneration, connection: FakeConnection) -> None:
        generation.put("a")
        connection.is_paused = True
        for letter in "bcd.":
            generation.put(letter)
        assert connection.written == [b"a"]
        connection.read()

    assert asyncio.run(writing(play)).written == [b"a", b"bcd."]


def test_what_takes_long_to_render_is_written_in_its_place() -> None:
    def play(generation: FakeGeneration, connection: FakeConnection) -> None:
        for text in ("a", "b!", "c", "d."):
            generation.put(text)
        assert connection.written == [b"a"]
        generation.is_rendered.set()

    assert asyncio.run(writing(play)).written == [b"a", b"b!", b"cd."]


def test_an_end_that_takes_long_to_render_is_written_once_it_can_be() -> None:
    def play(generation: FakeGeneration, connection: FakeConnection) -> None:
        connection.is_paused = True
        generation.put("!.")
        generation.is_rendered.set()
        connection.read()

    assert asyncio.run(writing(play)).written == [b"!."]


def test_a_failure_comes_after_the_text_before_it() -> None:
    def play(generation: FakeGeneration, connection: FakeConnection) -> None:
        generation.failure = failed("lost")
        generation.put("a")
        assert connection.written == [b"a"]

    with pytest.raises(ApiError, match="lost"):
        asyncio.run(writing(play))


def test_a_client_that_reads_nothing_and_leaves_is_aborted(tmp_path: Path) -> None:
    body = json.dumps({"model": MODEL, "prompt": "hi", "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    with serving(tmp_path) as daemon:
        host, port = daemon.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE_S) as client:
            client.sendall(head.encode() + body)
            (submit,) = daemon.engine.wait_for(Submit)
            daemon.engine.send(*[generated(submit.sequence_id, *HELLO * 1000)] * 1000)
            daemon.wait_until(lambda: daemon.client.num_generated == 1_000_000 * len(HELLO))
        assert daemon.engine.wait_for(Abort) == [Abort(submit.sequence_id)]
        daemon.wait_until(lambda: daemon.drain.num_open == 0)
