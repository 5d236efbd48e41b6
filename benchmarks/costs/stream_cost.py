"""The cost of a streamed token for the server and the engine: `make stream-cost`.

A real server and a real engine with scripted stages (no model) answer many streams at once; every
stream is read to its end and compared with its expected text. Prints CPU microseconds per token of
both processes, and the number of wrong streams.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import uvloop
from tqdm import tqdm
from transformers import AutoTokenizer

from bench.exchange import Address, exchange, fetch
from bench.machine import describe_machine, describe_versions
from benchmarks.scripted_stages import token_at
from configs import loader
from configs.config import Config
from configs.schema.model import DEMO_MODEL
from daemon.processes import child_process

PROMPT = [5] * 8
START_TIMEOUT_S = 60.0
RUN_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class CostRun:
    """CPU seconds of both processes while all streams ran, and the number of wrong streams."""

    server_s: float
    engine_s: float
    wall_s: float
    wrong: int


@dataclass(frozen=True, slots=True)
class Served:
    """A server with an engine and scripted stages."""

    address: Address
    server: psutil.Process
    engine: psutil.Process


@contextmanager
def serving(num_stages: int, step_ms: float, **settings: object) -> Iterator[Served]:
    """Run all processes during the block. Raises OSError if they do not start."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tdpipe-cost-")))
        config = Config.of(
            **{
                "runtime_dir": folder,
                "data_dir": folder / "data",
                "port": 0,
                "pipeline_parallel_size": num_stages,
                "max_num_queued_reqs": 100_000,
                "max_num_seqs": 4096,
                "log_level": "warning",
                **settings,
            }
        )
        loader.save(config, folder)

        def start(*arguments: str) -> psutil.Process:
            process = child_process.start(*arguments)
            stack.callback(process.wait)
            stack.callback(process.kill)
            return psutil.Process(process.pid)

        engine = start("engine", str(folder), "0")
        start("benchmarks.scripted_stages", str(folder), str(step_ms))
        server = start("server", str(folder))
        yield Served(_wait_ready(folder), server, engine)


def measure(served: Served, num_streams: int, num_tokens: int, model: str) -> CostRun:
    """Run all streams at once."""
    body = json.dumps(
        {
            "model": model,
            "prompt": PROMPT,
            "max_tokens": num_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    before = [_cpu_s(served.server), _cpu_s(served.engine)]
    began_at = time.monotonic()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        answers = runner.run(_ask_all(served.address, body, num_streams))
    wall_s = time.monotonic() - began_at
    server_s = _cpu_s(served.server) - before[0]
    engine_s = _cpu_s(served.engine) - before[1]
    expected = _expected(num_tokens)
    wrong = sum(_read(answer) != (expected, num_tokens) for answer in answers)
    return CostRun(server_s, engine_s, wall_s, wrong)


async def _ask_all(address: Address, body: bytes, num_streams: int) -> list[bytes]:
    request = address.post("/v1/completions", body)

    async def ask() -> bytes:
        answer = bytearray()
        await exchange(address, request, lambda _, data: answer.extend(data))
        return bytes(answer)

    async with asyncio.timeout(RUN_TIMEOUT_S):
        return await asyncio.gather(*(ask() for _ in range(num_streams)))


def _read(answer: bytes) -> tuple[str, int]:
    """Return the text of a stream and the tokens in its usage; -1 if it has no end."""
    text, num_tokens, is_done = "", -1, False
    for line in answer.decode().split("\n\n"):
        data = line.removeprefix("data: ")
        is_done = data == "[DONE]" or is_done
        if not data or data == "[DONE]":
            continue
        event = json.loads(data)
        text += "".join(choice["text"] for choice in event.get("choices", []))
        if event.get("usage"):
            num_tokens = event["usage"]["completion_tokens"]
    return text, num_tokens if is_done else -1


def _expected(num_tokens: int) -> str:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    token_ids = [token_at(len(PROMPT) + i) for i in range(num_tokens)]
    return str(tokenizer.decode(token_ids, skip_special_tokens=True))


def _wait_ready(folder: Path) -> Address:
    ends_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_at:
        time.sleep(0.1)
        port = folder / "port"
        if port.exists() and port.read_text():
            address = Address("127.0.0.1", int(port.read_text()))
            try:
                if asyncio.run(fetch(address, "/ready"))[0] == 200:
                    return address
            except OSError:
                continue
    raise OSError("the server did not become ready")


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if a stream was wrong."""
    prog = "python -m benchmarks.costs.stream_cost"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--streams", type=int, default=256, help="[256]")
    parser.add_argument("--tokens", type=int, default=128, help="of each stream [128]")
    parser.add_argument("--stages", type=int, default=2, help="[2]")
    parser.add_argument("--step-ms", type=float, default=10.0, help="duration of a step [10]")
    parser.add_argument("--rounds", dest="repeats", type=int, default=5, help="[5]")
    options = parser.parse_args(argv)
    with serving(options.stages, options.step_ms) as served:
        _, listed = asyncio.run(fetch(served.address, "/v1/models"))
        model = json.loads(listed)["data"][0]["id"]
        measure(served, options.streams, 8, model)  # to warm up
        runs = [
            measure(served, options.streams, options.tokens, model)
            for _ in tqdm(range(options.repeats))
        ]
        rss = served.server.memory_info().rss / 2**20
    total = options.streams * options.tokens
    print(f"{describe_machine()}, {describe_versions()}")
    print(
        f"{options.streams} streams x {options.tokens} tokens, {options.stages} scripted stages, "
        f"{options.step_ms:g} ms a step; server {rss:.0f} MB"
    )
    for name in ("server_s", "engine_s"):
        costs = [getattr(one, name) / total * 1e6 for one in runs]
        spread = f"({min(costs):.1f}-{max(costs):.1f})"
        print(f"{name.removesuffix('_s')}: {statistics.median(costs):.1f} us per token {spread}")
    print(f"{statistics.median(total / one.wall_s for one in runs):,.0f} tokens/s")
    wrong = sum(one.wrong for one in runs)
    print(f"{wrong} of {options.streams * options.repeats} streams were wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
