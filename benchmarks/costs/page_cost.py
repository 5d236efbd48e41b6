"""The cost of watching the pipeline: `make page-cost`.

A daemon with the demo model answers a steady load. Windows in which 0, 1 or 8 viewers read
`/pipeline/status` take turns. Prints the CPU time of each process as a part of one core.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx
import psutil
import uvloop

from bench.machine import describe_machine, describe_versions
from benchmarks.daemon_run import ROOT, serving
from configs.schema.model import DEMO_MODEL
from server.page.status_stream import PATH

VIEWERS = (0, 1, 8)
WARM_UP_S, SETTLE_S = 10.0, 2.0
STEADY = ("--workload=fixed:100000:64:64", "--burstiness=100")
"""Requests of one size at equal distances, so that all windows have the same work."""

Costs = dict[str, float]
"""CPU seconds per second of each process by name, and `bytes` to one viewer per second."""


@contextmanager
def loaded(url: str, request_rate: float, *flags: str) -> Iterator[None]:
    """Send a steady load during the block."""
    command = [sys.executable, str(ROOT / "tdpipe.py"), "bench", url]
    process = subprocess.Popen(
        [*command, f"--request-rate={request_rate}", *flags],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def watch(url: str, num_viewers: int, seconds: float) -> int:
    """Let viewers read for a while; returns the bytes of all."""
    num_bytes = 0

    async def read(client: httpx.AsyncClient) -> None:
        nonlocal num_bytes
        async with client.stream("GET", url + PATH) as response:
            async for piece in response.aiter_raw():
                num_bytes += len(piece)

    async with httpx.AsyncClient(timeout=None) as client:
        reading = [asyncio.create_task(read(client)) for _ in range(num_viewers)]
        await asyncio.sleep(seconds)
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
    return num_bytes


def measure(url: str, processes: dict[str, list[psutil.Process]], viewers: int, s: float) -> Costs:
    """One window, after the viewers have got the past."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(watch(url, viewers, SETTLE_S))
        before, began_at = _cpu_s(processes), time.monotonic()
        num_bytes = runner.run(watch(url, viewers, s))
        seconds = time.monotonic() - began_at
    costs = {name: (cpu - before[name]) / seconds for name, cpu in _cpu_s(processes).items()}
    return costs | {"bytes": num_bytes / seconds / max(1, viewers)}


def _processes(runtime: Path) -> dict[str, list[psutil.Process]]:
    """The daemon's processes by name."""
    found: dict[str, list[psutil.Process]] = {"server": [], "engine": [], "stages": []}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if str(runtime) not in " ".join(command):
            continue
        for name, module in (("server", "server"), ("engine", "engine"), ("stages", "workers")):
            if module in command:
                found[name] += [process, *process.children(recursive=True)]
    return {name: list(dict.fromkeys(each)) for name, each in found.items()}


def _cpu_s(processes: dict[str, list[psutil.Process]]) -> dict[str, float]:
    return {
        name: sum(sum(process.cpu_times()[:2]) for process in each)
        for name, each in processes.items()
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.costs.page_cost", description=__doc__)
    parser.add_argument("--request-rate", type=float, default=10.0, help="[10 per second]")
    parser.add_argument("--data-dir", type=Path, help="with kernels and costs of a former run")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a window [10]")
    parser.add_argument("--rounds", dest="repeats", type=int, default=3, help="[3]")
    options = parser.parse_args(argv)
    windows: dict[int, list[Costs]] = {viewers: [] for viewers in VIEWERS}
    with tempfile.TemporaryDirectory(prefix="tdpipe-page-") as folder:
        runtime = Path(folder) / "run"
        flags = [f"--runtime-dir={runtime}"]
        if options.data_dir is not None:
            flags.append(f"--data-dir={options.data_dir}")
        with serving(DEMO_MODEL, 2, flags, Path(folder) / "daemon") as url:
            processes = _processes(runtime)
            with loaded(url, options.request_rate, *STEADY):
                time.sleep(WARM_UP_S)
                for _ in range(options.repeats):
                    for viewers in VIEWERS:
                        windows[viewers].append(measure(url, processes, viewers, options.seconds))
    print(f"{describe_machine()}, {describe_versions()}")
    print("viewers   server   engine   stages   kB/s to one")
    for viewers, costs in windows.items():
        shares = (median(each[name] for each in costs) for name in ("server", "engine", "stages"))
        cells = "".join(f"{share:9.2%}" for share in shares)
        print(f"{viewers:7}{cells}{median(each['bytes'] for each in costs) / 1000:14.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
