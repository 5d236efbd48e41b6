"""A small world: daemons that follow a script, a router, and clients, all in one event loop."""

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvloop

from configs.schema.route import RouteConfig
from daemon.observability.tracing import Tracing
from router.journal import Journal
from router.process import Router
from router.upstream.framing import payload
from server.http.listener import listen
from wire.instance_status import InstanceStatus

MODEL = "little"
PATIENCE_S = 30.0
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\nx-request-id: its-own\r\ntransfer-encoding: chunked\r\n\r\n"
)
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END = chunk(b"")


def event(text: str, *token_ids: int, index: int = 0, finish: str | None = None) -> bytes:
    """An event of a completion, as a daemon writes it for a router."""
    choice = {"index": index, "text": text, "token_ids": token_ids, "finish_reason": finish}
    body = {"id": "cmpl-1", "created": 7, "model": MODEL, "choices": [choice]}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


@dataclass
class Asked:
    """A request that a daemon got, and the connection that it came by."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader

    @property
    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)

    async def write(self, *parts: bytes) -> None:
        """Write parts, each in a segment of its own."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def answer(self, body: object, status: int = 200, *headers: str) -> None:
        """Write a whole JSON answer."""
        data = json.dumps(body).encode()
        lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data)}", *headers]
        lines += ["content-type: application/json", "", ""]
        await self.write("\r\n".join(lines).encode() + data)

    async def left(self) -> None:
        """Wait until the router has closed the connection."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionResetError):
                assert await self.reader.read() == b""


Script = Callable[[Asked], Awaitable[None]]


async def silent(_asked: Asked) -> None:
    """A script: no answer."""
    await asyncio.sleep(PATIENCE_S)


@dataclass
class FakeDaemon:
    """A daemon on a port of its own; `script` answers what is no status."""

    script: Script = silent
    status: InstanceStatus = field(
        default_factory=lambda: InstanceStatus(
            "one", ready=True, models=(MODEL,), max_model_len=100
        )
    )
    sends_statuses: bool = True
    asked: list[Asked] = field(default_factory=list)
    status_headers: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    owner: str = ""
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Reset all connections and stop listening, as the death of a process does."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            while (asked := await self._read(reader, writer)) is not None:
                path, _, query = asked.path.partition("?")
                if path == "/instance/status":
                    self.status_headers.append(asked.headers)
                    await self._tell_owner(asked, query.removeprefix("owner="))
                else:
                    self.asked.append(asked)
                    await self.script(asked)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()

    @staticmethod
    async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Asked | None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split()
        return Asked(method, path, headers, body, writer, reader)

    async def _tell_owner(self, asked: Asked, owner: str) -> None:
        if self.owner not in ("", owner):
            await asked.answer({"error": {}}, 409)
            return
        self.owner = owner
        try:
            await self._tell(asked)
        finally:
            self.owner = ""

    async def _tell(self, asked: Asked) -> None:
        await asked.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            if self.sends_statuses:
                await asked.write(chunk(msgspec.json.encode(self.status) + b"\n"))
            await asyncio.sleep(0.05)


@dataclass
class Reply:
    """What a client got: the head, and the body with its frames."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> bytes:
        """The body without frames."""
        is_chunked = self.headers.get("transfer-encoding") == "chunked"
        return payload(self.raw.removesuffix(END)) if is_chunked else self.raw

    @property
    def json(self) -> Any:
        """The parsed body."""
        return json.loads(self.body)


@dataclass
class World:
    """A router, and the daemons that it was started with."""

    router: Router
    daemons: list[FakeDaemon]
    port: int
    serving: asyncio.Task[None]

    async def connect(
        self, path: str, body: object = None, version: str = "1.1", **headers: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request; GET without a body."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        data = b"" if body is None else body if isinstance(body, bytes) else _dumped(body)
        lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/{version}", "host: x"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += ["connection: close", f"content-length: {len(data)}", "", ""]
        writer.write("\r\n".join(lines).encode() + data)
        return reader, writer

    async def ask(self, path: str, body: object = None, **headers: str) -> Reply:
        """Send a request, and read the answer to its end."""
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await self.connect(path, body, **headers)
            reply = parse(await reader.read())
            writer.close()
            return reply

    async def stream(self, **fields: Any) -> Reply:
        """Ask for a streamed completion."""
        return await self.ask("/v1/completions", completion(stream=True, **fields))

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.005)

    async def metric(self, line: str) -> float:
        """The value of a sample."""
        for each in (await self.ask("/metrics")).body.decode().splitlines():
            if each.startswith(line + " "):
                return float(each.split()[-1])
        return 0.0

    def is_up(self, index: int = 0) -> bool:
        """Whether the router takes an instance to be up."""
        link = self.router.fleets.links.get(self.daemons[index].url)
        return link is not None and link.is_up


@asynccontextmanager
async def running(
    *daemons: FakeDaemon,
    wait: bool = True,
    journal: Journal | None = None,
    traces: Tracing | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """Run daemons and a router during the block."""
    for daemon in daemons:
        if not daemon.port:  # otherwise another router has it too
            await daemon.start()
    values = {"instances": [daemon.url for daemon in daemons], "routing": "round-robin"}
    with ExitStack() as opened:
        if "data_dir" not in settings:
            settings["data_dir"] = opened.enter_context(tempfile.TemporaryDirectory())
        listener = opened.enter_context(listen("127.0.0.1", 0))
        config = RouteConfig.of(**(values | {"shutdown_timeout": 0.0} | settings))
        router = Router(config, journal, None, traces)
        serving = asyncio.create_task(router.run(listener))
        world = World(router, list(daemons), listener.getsockname()[1], serving)
        await world.until(lambda: router.server is not None)
        assert router.server is not None
        server = router.server
        try:
            if wait:
                await world.until(lambda: all(map(world.is_up, range(len(daemons)))))
            yield world
        finally:
            if not server.should_exit:
                server.stop()
            async with asyncio.timeout(PATIENCE_S):
                await serving
            for daemon in daemons:
                await daemon.kill()


def run_async(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in the event loop that routers have."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test)


def completion(**fields: Any) -> dict[str, Any]:
    """The body of a completion."""
    return {"model": MODEL, "prompt": "hello"} | fields


def parse(answer: bytes) -> Reply:
    """Take an answer apart."""
    head, _, raw = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Reply(int(first.split()[1]), headers, raw)


def _dumped(body: object) -> bytes:
    return json.dumps(body).encode()
