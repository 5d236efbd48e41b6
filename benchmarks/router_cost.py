"""The cost of a streamed token for the router: CPU seconds of its process per event and per token.

A real router (`tdpipe route`) stands before a stand-in of a daemon, a process that writes one event
to each of its streams at a fixed pace; then before a real server and engine with scripted stages at
the same pace, which puts several tokens into an event when many streams are open. All streams are
read to their end and compared with what was sent.

    python -m benchmarks.router_cost --streams 64 256
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil
import uvloop

from bench.exchange import Address, exchange, fetch
from bench.machine import describe_machine, describe_versions
from benchmarks.costs import stream_cost
from wire.instance_status import InstanceStatus

MODEL = "stand-in"
START_TIMEOUT_S = 30.0
RUN_TIMEOUT_S = 300.0
STATUS_S = 0.25
NUM_STAGES = 2
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def events_of(num_tokens: int) -> list[bytes]:
    """The events of a stream, as long as those of a daemon are."""
    return [
        b'data: {"id":"cmpl-0123456789abcdef0123456789abcdef","object":"text_completion",'
        b'"created":1790000000,"model":"%b","choices":[{"index":0,"text":" token","token_ids":[%d],'
        b'"logprobs":null,"finish_reason":null}]}\n\n' % (MODEL.encode(), i)
        for i in range(num_tokens)
    ]


class _StandIn:
    """A daemon that writes the events of all its streams at once, every `step_s`."""

    def __init__(self, step_s: float, num_tokens: int, num_streams: int) -> None:
        self._step_s, self._num_streams = step_s, num_streams
        self._chunks = [b"%x\r\n%b\r\n" % (len(e), e) for e in events_of(num_tokens)]
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /instance/status"):
            status = InstanceStatus("stand-in", ready=True, models=(MODEL,))
            line = msgspec.json.encode(status) + b"\n"
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while not writer.is_closing():
                writer.write(b"%x\r\n%b\r\n" % (len(line), line))
                await asyncio.sleep(STATUS_S)
            return
        writer.write(_HEAD)
        self._writers.append(writer)
        if len(self._writers) == self._num_streams:
            await self._write_all()

    async def _write_all(self) -> None:
        writers, self._writers = self._writers, []
        next_at = time.monotonic()
        for part in (*self._chunks, b"0\r\n\r\n"):
            for writer in writers:
                writer.write(part)
            next_at += self._step_s
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))
        for writer in writers:
            writer.close()


async def _run_stand_in(step_s: float, num_tokens: int, num_streams: int) -> None:
    stand_in = _StandIn(step_s, num_tokens, num_streams)
    server = await asyncio.start_server(stand_in.serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def standing_in(step_s: float, num_tokens: int, num_streams: int) -> Iterator[str]:
    """Run a stand-in of a daemon during the block; yields its URL."""
    numbers = map(str, (step_s, num_tokens, num_streams))
    command = (sys.executable, "-m", "benchmarks.router_cost", "--stand-in", *numbers)
    with subprocess.Popen(command, stdout=subprocess.PIPE) as stand_in:
        assert stand_in.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(stand_in.stdout.readline())}"
        finally:
            stand_in.kill()


@contextmanager
def routing(url: str) -> Iterator[tuple[Address, psutil.Process]]:
    """Run a router before one instance during the block; yields its address and its process."""
    with (
        tempfile.TemporaryDirectory(prefix="tdpipe-cost-") as name,
        Path(name, "log").open("wb") as log,
    ):
        command = [sys.executable, "-m", "tdpipe", "route", "--instances", url, "--port", "0"]
        command += ["--no-access-log", "--routing", "round-robin", "--data-dir", f"{name}/data"]
        with subprocess.Popen(command, stderr=log) as router:
            try:
                yield _wait_ready(Path(name, "log")), psutil.Process(router.pid)
            finally:
                router.kill()


def _wait_ready(log: Path) -> Address:
    ends_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_at:
        time.sleep(0.1)
        _, found, rest = log.read_text().partition("listening on ")
        if found and " " in rest:
            address = Address.of(rest.split(" ")[0])
            if asyncio.run(fetch(address, "/ready"))[0] == 200:
                return address
    raise OSError("the router did not become ready")


async def _ask_all(address: Address, num_streams: int) -> list[bytes]:
    body = json.dumps({"model": MODEL, "prompt": "x" * 2000, "stream": True}).encode()
    request = address.post("/v1/completions", body)

    async def ask() -> bytes:
        answer = bytearray()
        await exchange(address, request, lambda _, data: answer.extend(data))
        return bytes(answer)

    async with asyncio.timeout(RUN_TIMEOUT_S):
        return await asyncio.gather(*(ask() for _ in range(num_streams)))


def measure(num_streams: int, num_tokens: int, step_s: float) -> tuple[float, float, int]:
    """CPU microseconds per event, events per second, and the number of wrong streams."""
    with (
        standing_in(step_s, num_tokens, num_streams) as url,
        routing(url) as (address, router),
    ):
        asyncio.run(_ask_all(address, num_streams))  # to warm up
        before, began_at = _cpu_s(router), time.monotonic()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            answers = runner.run(_ask_all(address, num_streams))
        wall_s, cpu_s = time.monotonic() - began_at, _cpu_s(router) - before
    expected = b"".join(events_of(num_tokens))
    total = num_streams * num_tokens
    wrong = sum(answer != expected for answer in answers)
    return cpu_s / total * 1e6, total / wall_s, wrong


def measure_daemon(num_streams: int, num_tokens: int, step_s: float) -> tuple[float, float, int]:
    """CPU microseconds per token before a daemon, tokens per second, and the wrong streams."""
    with (
        stream_cost.serving(NUM_STAGES, step_s * 1000 / NUM_STAGES) as daemon,
        routing(f"http://{daemon.address.host}:{daemon.address.port}") as (address, router),
    ):
        model = json.loads(asyncio.run(fetch(address, "/v1/models"))[1])["data"][0]["id"]
        routed = stream_cost.Served(address, router, daemon.engine)
        stream_cost.measure(routed, num_streams, 8, model)  # to warm up
        run = stream_cost.measure(routed, num_streams, num_tokens, model)
    total = num_streams * num_tokens
    return run.server_s / total * 1e6, total / run.wall_s, run.wrong


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if a stream was wrong."""
    parser = argparse.ArgumentParser("python -m benchmarks.router_cost", description=__doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[64, 256], help="[64 256]")
    parser.add_argument("--tokens", type=int, default=400, help="of each stream [400]")
    parser.add_argument("--step-ms", type=float, default=20.0, help="between two tokens [20]")
    parser.add_argument("--stand-in", type=float, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.stand_in:
        step_s, num_tokens, num_streams = options.stand_in
        uvloop.run(_run_stand_in(step_s, int(num_tokens), int(num_streams)))
        return 0
    print(f"{describe_machine()}, {describe_versions()}")
    all_wrong = 0
    for num_streams in options.streams:
        for measured, what in ((measure, "event"), (measure_daemon, "token")):
            cost_us, rate, wrong = measured(num_streams, options.tokens, options.step_ms / 1000)
            print(f"{num_streams} streams: {cost_us:.1f} us per {what}, {rate:,.0f} {what}s/s")
            all_wrong += wrong
    print(f"{all_wrong} streams were wrong")
    return int(all_wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
