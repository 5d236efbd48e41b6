"""A small world: a clock that jumps, and an HTTP server that streams a script."""

import asyncio
import json
import selectors
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bench.filler_text import WORDS, all_words

DONE = b"data: [DONE]\n\n"
Result = TypeVar("Result")


class _JumpingSelector(selectors.DefaultSelector):
    """Instead of waiting it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "all tasks wait for something that never happens"
        self.now += max(0.0, timeout)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_in_virtual_time(work: Coroutine[Any, Any, Result]) -> Result:
    """Run to the end; sleeping takes no time, and the clock is exact."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(work)


def piece(text: str, finish_reason: str | None = None) -> bytes:
    """The event of one piece of text."""
    choice = {"index": 0, "text": text, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice], "usage": None}).encode() + b"\n\n"


def chunk(finish_reason: str | None = None, **delta: Any) -> bytes:
    """The event of a chunk of a chat."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def usage(prompt: int, output: int) -> bytes:
    """The event with the numbers of tokens."""
    counts = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return b"data: " + json.dumps({"choices": [], "usage": counts}).encode() + b"\n\n"


def whole_answer(*texts: str) -> list[bytes]:
    """A stream of one token per text, from a prompt of 3 tokens."""
    *before, last = texts
    events = [*map(piece, before), piece(last, "stop")]
    return [*events, usage(3, len(texts)), DONE]


@dataclass
class Answer:
    """What the server sends back; without an end it closes the connection after the parts."""

    parts: list[bytes]
    status: int = 200
    has_end: bool = True


Script = Callable[[dict[str, Any]], Answer]


@dataclass
class ScriptedServer:
    """Answers generations as `script` says, in a thread of its own.

    Probes (short requests whose prompts are all words of the filler text) get an answer of one
    token, unless `probe` scripts them.
    """

    script: Script
    has_metrics: bool = True
    probe: Script | None = None
    is_starting: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    probes: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    port: int = 0
    _num_scrapes: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request, or none if the client leaves before."""
        with suppress(asyncio.IncompleteReadError):
            await self._answer_one(reader, writer)
        writer.close()

    async def _answer_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        length = next((int(x[15:]) for x in head.split("\r\n") if x.startswith("content-le")), 0)
        self.heads.append(head)
        answer = self._answer(path, await reader.readexactly(length))
        writer.write(b"HTTP/1.1 %d X\r\ntransfer-encoding: chunked\r\n\r\n" % answer.status)
        for part in answer.parts:
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
        writer.write(b"0\r\n\r\n" if answer.has_end else b"")

    def _answer(self, path: str, body: bytes) -> Answer:
        if path in ("/v1/completions", "/v1/chat/completions"):
            return self._generate(path, json.loads(body))
        if path == "/v1/models" and self.is_starting:
            return Answer([b"{}"], 503)
        if path == "/v1/models":
            return Answer([b'{"data": [{"id": "little", "max_model_len": 64}]}'])
        if path == "/version":
            return Answer([b'{"version": "1.2.3"}'])
        if path == "/metrics" and self.has_metrics:
            self._num_scrapes += 1
            return Answer([metrics(self._num_scrapes)])
        return Answer([b"{}"], 404)

    def _generate(self, path: str, body: dict[str, Any]) -> Answer:
        prompt = body["messages"][0]["content"] if "messages" in body else body.get("prompt")
        if isinstance(prompt, str) and prompt.startswith(all_words(1)) and body["max_tokens"] == 1:
            self.probes.append(body)
            return self.probe(body) if self.probe else Answer(probe_answer(prompt))
        self.bodies.append(body)
        self.paths.append(path)
        return self.script(body)


def probe_answer(prompt: str) -> list[bytes]:
    """An answer of a server whose words have two tokens each, with four around a prompt."""
    num_words = len(prompt.split())
    assert num_words % len(WORDS) == 0
    return [piece("x", "length"), usage(2 * num_words + 4, 1), DONE]


def metrics(scrape: int) -> bytes:
    """A page of /metrics on which every figure grows from scrape to scrape."""
    lines = [
        f"tdpipe_engine_uptime_seconds {10.0 * scrape}",
        f"tdpipe_phase_switches_total {2.0 * scrape}",
        f"tdpipe_work_steals_total {3.0 * scrape}",
        f"tdpipe_preemptions_total {0.0 * scrape}",
        f'tdpipe_stage_busy_seconds_total{{stage="0"}} {0.25 * scrape}',
        f'tdpipe_stage_bubble_seconds_total{{stage="0"}} {0.75 * scrape}',
        f'tdpipe_stage_steps_total{{stage="0"}} {7.0 * scrape}',
    ]
    return "\n".join([*lines, ""]).encode()


@contextmanager
def serving(
    script: Script, *, has_metrics: bool = True, probe: Script | None = None
) -> Iterator[ScriptedServer]:
    """A scripted server that listens for the length of the block."""
    server = ScriptedServer(script, has_metrics, probe)
    ready, stopping = threading.Event(), threading.Event()

    async def serve() -> None:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        async with listener:
            ready.set()
            await asyncio.to_thread(stopping.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    assert ready.wait(10)
    try:
        yield server
    finally:
        stopping.set()
        thread.join()
