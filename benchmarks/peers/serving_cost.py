"""The CPU time of a streamed token in each process, beside vLLM: `make serving-cost`.

tdpipe and vLLM (its CPU build, in the environment of `make peers`) serve the demo model with two
stages, one after the other in each round. 256 streams of 128 tokens are read to their ends. Prints
microseconds of CPU time per token of the HTTP server, of the process that schedules (tdpipe's
engine, vLLM's EngineCore) and of all stages together, medians over the rounds.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop
from tqdm import tqdm

from bench.exchange import Address, exchange, fetch
from bench.machine import describe_machine
from benchmarks.peers.__main__ import candidates
from configs.schema.model import DEMO_MODEL

ROOT = Path(__file__).resolve().parents[2]
PROMPT = [5] * 16
START_TIMEOUT_S, RUN_TIMEOUT_S = 300.0, 300.0
NUM_RUNS = 2
ROLES = ("server", "scheduler", "stages")


@dataclass(frozen=True, slots=True)
class Contender:
    """A server, and what its processes do: the part of a name or command line, by role."""

    name: str
    command: Sequence[str]
    roles: Mapping[str, str]
    environment: Mapping[str, str] = field(default_factory=dict)

    def role_of(self, process: psutil.Process) -> str:
        """The role of a process; empty for one that has none, e.g. a supervisor."""
        words = " ".join([process.name(), *process.cmdline()])
        return next((role for mark, role in self.roles.items() if mark in words), "")


def contenders(folder: Path, port: int) -> list[Contender]:
    """tdpipe, and vLLM from the environments in `folder`, with two stages each."""
    vllm = next(c for c in candidates(folder, folder / "data") if c.engine == "vllm")
    ours = [sys.executable, str(ROOT / "tdpipe.py"), "serve", "--port", str(port), "-pp", "2"]
    ours += ["--device", "cpu", "--num-threads", "1", "--data-dir", str(folder / "data")]
    theirs = [str(vllm.python), "-m", "vllm.entrypoints.openai.api_server", "--port", str(port)]
    theirs += ["--model", str(DEMO_MODEL), "--served-model-name", "tdpipe-demo"]
    theirs += [
        "--pipeline-parallel-size",
        "2",
        "--dtype",
        "float32",
        "--disable-uvicorn-access-log",
    ]
    return [
        Contender(
            "tdpipe",
            ours,
            {"-m server": "server", "-m engine": "scheduler", "-m workers": "stages"},
        ),
        Contender(
            "vLLM",
            theirs,
            {"EngineCore": "scheduler", "Worker": "stages", "api_server": "server"},
            {**vllm.environment, "VLLM_CPU_OMP_THREADS_BIND": "0|1"},
        ),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return 1 if a contender failed."""
    parser = argparse.ArgumentParser(prog="make serving-cost ARGS=...", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=Path(".venv-peers"), help="the environments of `make peers`")
    add("--streams", type=int, default=256, help="[256]")
    add("--tokens", type=int, default=128, help="of each stream [128]")
    add("--rounds", type=int, default=3, help="starts of each [3]")
    options = parser.parse_args(argv)
    found: dict[str, list[dict[str, float]]] = {}
    for _ in tqdm(range(options.rounds), file=sys.stderr):
        for contender in contenders(options.folder.resolve(), _free_port()):
            try:
                runs = measure(contender, options.streams, options.tokens)
            except (OSError, subprocess.SubprocessError, TimeoutError) as error:
                print(f"error: {contender.name}: {error}", file=sys.stderr)
                return 1
            found.setdefault(contender.name, []).extend(runs)
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['num_cores']} cores")
    print(f"{options.streams} streams of {options.tokens} tokens; CPU us per token\n")
    print("\n".join(table(found)))
    return 0


def measure(contender: Contender, num_streams: int, num_tokens: int) -> list[dict[str, float]]:
    """By role, microseconds of CPU time per token; `tokens/s` too. One start, `NUM_RUNS` runs."""
    body = {"model": "tdpipe-demo", "prompt": PROMPT, "max_tokens": num_tokens, "temperature": 0}
    request = json.dumps(body | {"ignore_eos": True, "stream": True}).encode()
    runs = []
    with running(contender) as (process, address):
        for _ in range(1 + NUM_RUNS):  # the first one warms up
            before, began_at = _cpu_s(contender, process), time.monotonic()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_ask_all(address, request, num_streams))
            seconds, after = time.monotonic() - began_at, _cpu_s(contender, process)
            total = num_streams * num_tokens
            used = {role: 1e6 * (after[role] - before[role]) / total for role in ROLES}
            runs.append(used | {"tokens/s": total / seconds})
    return runs[1:]


def table(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """The table as Markdown, with the ratios of the first contender to the second."""
    lines = [f"| | {' | '.join(found)} | ratio |", "|---|" + "--:|" * (len(found) + 1)]
    for what in (*ROLES, "tokens/s"):
        columns = [[run[what] for run in runs] for runs in found.values()]
        medians = [statistics.median(column) for column in columns]
        cells = [
            f"{middle:,.1f} ({min(column):,.1f}–{max(column):,.1f})"
            for middle, column in zip(medians, columns, strict=True)
        ]
        lines.append(f"| {what} | {' | '.join(cells)} | {medians[0] / medians[-1]:.2f} |")
    return lines


@contextmanager
def running(contender: Contender) -> Iterator[tuple[psutil.Process, Address]]:
    """The contender during the block. Raises `OSError` if it does not start."""
    flag = contender.command.index("--port")
    address = Address("127.0.0.1", int(contender.command[flag + 1]))
    process = subprocess.Popen(
        contender.command,
        env=os.environ | contender.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    )
    try:
        _wait_ready(process, address)
        yield psutil.Process(process.pid), address
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_ready(process: "subprocess.Popen[bytes]", address: Address) -> None:
    ends_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < ends_at and process.poll() is None:
        time.sleep(0.5)
        try:
            if asyncio.run(fetch(address, "/health"))[0] == 200:
                return
        except OSError:
            continue
    raise OSError("it did not become ready")


async def _ask_all(address: Address, body: bytes, num_streams: int) -> None:
    request = address.post("/v1/completions", body)

    async def ask() -> None:
        answer = bytearray()
        await exchange(address, request, lambda _, data: answer.extend(data))
        if not answer.rstrip().endswith(b"data: [DONE]"):
            raise OSError(f"a stream did not end: {bytes(answer[-200:])!r}")

    async with asyncio.timeout(RUN_TIMEOUT_S):
        await asyncio.gather(*(ask() for _ in range(num_streams)))


def _cpu_s(contender: Contender, root: psutil.Process) -> dict[str, float]:
    """CPU seconds so far, by role."""
    used: defaultdict[str, float] = defaultdict(float)
    for process in (root, *root.children(recursive=True)):
        times = process.cpu_times()
        used[contender.role_of(process)] += times.user + times.system
    return used


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
