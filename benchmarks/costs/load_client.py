"""What `tdpipe bench` itself costs, and how exact its latencies are.

A stand-in for a server, in a process of its own, writes one event to each open stream at a fixed
pace, so the true time per output token is known. Prints, for each number of streams, the pieces per
second, the client's CPU time per piece, and the measured TPOT and ITL.

    python -m benchmarks.costs.load_client --streams 64 256 1024
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
from typing import Any

import uvloop

from bench.machine import describe_machine, describe_versions
from simulator.argument_types import positive, positive_int

MODEL = "stand-in"
RUN_TIMEOUT_S = 300.0
ROOT = Path(__file__).resolve().parents[2]
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class StandIn:
    """A server that writes an event to each of its streams, every `step_s`."""

    def __init__(self, step_s: float, num_tokens: int) -> None:
        self._step_s = step_s
        self._events = [_chunk(_event(number, num_tokens)) for number in range(num_tokens)]
        usage = {"prompt_tokens": 4, "completion_tokens": num_tokens}
        end = b"data: %b\n\ndata: [DONE]\n\n" % json.dumps({"choices": [], "usage": usage}).encode()
        self._end = _chunk(end) + b"0\r\n\r\n"
        self._streams: dict[asyncio.StreamWriter, int] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"POST"):
            writer.write(_HEAD)
            self._streams[writer] = 0
            return
        models = json.dumps({"data": [{"id": MODEL}]}).encode()
        found = head.startswith(b"GET /v1/models")
        body = models if found else b"{}"
        status = b"200 OK" if found else b"404 Not Found"
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    async def write_steps(self) -> None:
        """Write an event to every stream at each step, for ever."""
        next_at = time.monotonic()
        while True:
            for writer, number in list(self._streams.items()):
                writer.write(self._events[number])
                self._streams[writer] = number + 1
                if number + 1 == len(self._events):
                    writer.write(self._end)
                    writer.close()
                    del self._streams[writer]
            next_at += self._step_s
            await asyncio.sleep(max(0.0, next_at - time.monotonic()))


def _event(number: int, num_tokens: int) -> bytes:
    """An event as long as a daemon's."""
    choice = {
        "index": 0,
        "text": " token",
        "logprobs": None,
        "finish_reason": "length" if number + 1 == num_tokens else None,
    }
    event = {"id": f"cmpl-{0:032x}", "object": "text_completion", "created": 1790000000}
    return b"data: %b\n\n" % json.dumps(event | {"model": MODEL, "choices": [choice]}).encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def _run_stand_in(step_s: float, num_tokens: int) -> None:
    stand_in = StandIn(step_s, num_tokens)
    server = await asyncio.start_server(stand_in.serve, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await stand_in.write_steps()


@contextmanager
def serving(step_s: float, num_tokens: int) -> Iterator[str]:
    """Run a stand-in during the block; yields its URL."""
    command = [sys.executable, "-m", "benchmarks.costs.load_client", "--stand-in"]
    with subprocess.Popen(
        [*command, str(step_s), str(num_tokens)], stdout=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def measure(num_streams: int, num_tokens: int, step_s: float, rounds: int) -> dict[str, Any]:
    """The report of `tdpipe bench` with so many streams open, each followed by others."""
    with serving(step_s, num_tokens) as url, tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        command = [sys.executable, str(ROOT / "tdpipe.py"), "bench", url, f"--output={out}"]
        load = f"--workload=fixed:{num_streams * rounds}:16:{num_tokens}"
        limits = [f"--max-concurrency={num_streams}", f"--timeout={RUN_TIMEOUT_S}"]
        subprocess.run(
            [*command, load, *limits], check=True, timeout=2 * RUN_TIMEOUT_S, capture_output=True
        )
        report: dict[str, Any] = json.loads(out.read_text())
        return report


def row(num_streams: int, report: dict[str, Any]) -> str:
    """A line of the table."""
    summary, cpu_s = report["summary"], report["client_cpu_s"]
    num_pieces, duration_s = summary["num_pieces"], summary["duration_s"]
    tpot, itl = summary["tpot_s"], summary["itl_s"]
    figures = [
        f"{num_pieces / duration_s:,.0f}",
        f"{1e6 * cpu_s / num_pieces:.1f}",
        f"{cpu_s / duration_s:.0%}",
        *(f"{1000 * value:.2f}" for value in (tpot["p50"], tpot["p99"], itl["p50"], itl["p99"])),
    ]
    return f"| {num_streams} | {' | '.join(figures)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.costs.load_client", description=__doc__)
    add = parser.add_argument
    add("--streams", type=positive_int, nargs="+", default=[64, 256, 1024], help="[64 256 1024]")
    add("--tokens", type=positive_int, default=200, help="of each stream [200]")
    add("--step-ms", type=positive, default=25.0, help="between two tokens of a stream [25]")
    add("--rounds", type=positive_int, default=3, help="requests of each stream [3]")
    add("--stand-in", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.stand_in:
        step_s, num_tokens = options.stand_in
        uvloop.run(_run_stand_in(float(step_s), int(num_tokens)))
        return 0
    print(f"{describe_machine()}, {describe_versions()}\n")
    print(f"true time per output token: {options.step_ms:g} ms\n")
    print(
        "| streams | pieces/s | CPU per piece, us | of a core | TPOT p50 | p99 | ITL p50 | p99 |\n"
        "|--:|--:|--:|--:|--:|--:|--:|--:|"
    )
    for num_streams in options.streams:
        report = measure(num_streams, options.tokens, options.step_ms / 1000, options.rounds)
        print(row(num_streams, report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
