"""A measurement: sends all calls to a server and reports the answers."""

import asyncio
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from tqdm import tqdm

from bench.call import Call
from bench.exchange import Address, exchange
from bench.load_run import Bounds, LoadRun
from bench.machine import describe_machine, describe_versions
from bench.results.daemon_figures import growth, read_figures, read_settled_figures
from bench.results.record import Record
from bench.results.report import describe_request
from bench.results.summary import summarise
from bench.server import LoadTarget, describe_server
from daemon.gc_tuning import GcTuning
from simulator.spread import PERCENTILES


@dataclass(frozen=True, slots=True)
class Figures:
    """What is computed of the answers: percentiles, and the targets of goodput in seconds."""

    percentiles: tuple[float, ...] = PERCENTILES
    targets: Mapping[str, float] = field(default_factory=dict)


async def measure(
    calls: Sequence[Call], target: LoadTarget, bounds: Bounds, figures: Figures | None = None
) -> dict[str, Any]:
    """Send all calls and report. Raises `LoadError` if there is no server."""
    figures = figures or Figures()
    address = target.address
    server = await describe_server(target)
    before = await read_figures(address)
    report = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "server": server,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    GcTuning()  # a collection over all requests took a second, which was part of the latencies
    cpu_before_s = time.process_time()
    run, ending = await send_all(calls, target, server["model"], bounds)
    client_cpu_s = time.process_time() - cpu_before_s
    after = await read_settled_figures(address)
    return report | {
        "ending": ending,
        "client_cpu_s": client_cpu_s,
        "summary": summarise(
            calls, run.records, run.duration_s, figures.percentiles, figures.targets
        ),
        "daemon": growth(before, after) if before and after else None,
        "requests": [describe_request(record) for record in run.records],
    }


async def send_all(
    calls: Sequence[Call], target: LoadTarget, model: str, bounds: Bounds
) -> tuple[LoadRun, str]:
    """Send all calls to the model; the run, and how it ended."""
    address = target.address
    requests = [_encoded(call, address, model, target.include_usage) for call in calls]
    with tqdm(total=len(calls), unit="req", disable=None) as bar:
        num_tokens = 0

        async def ask(index: int, record: Record) -> None:
            def take(status: int, data: bytes) -> None:
                record.feed(status, data, run.now())

            status = await exchange(address, requests[index], take)
            record.end(status, run.now())
            if calls[index].answer is None:
                record.texts.clear()  # a million answers would take gigabytes

        def advance(record: Record) -> None:
            nonlocal num_tokens
            num_tokens += record.num_output_tokens
            bar.set_postfix_str(f"{num_tokens / run.now():.0f} tokens/s", refresh=False)
            bar.update()

        run = LoadRun([call.arrival_s or 0.0 for call in calls], ask, bounds, advance)
        with _interrupting(run):
            ending = await run.run()
    return run, ending


def _encoded(call: Call, address: Address, model: str, include_usage: bool) -> bytes:
    body = call.body(model, include_usage=include_usage)
    return address.post(call.endpoint, msgspec.json.encode(body))


@contextmanager
def _interrupting(run: LoadRun) -> Iterator[None]:
    """Ctrl-C or SIGTERM ends the run, and the answers so far are still reported."""
    events = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        events.add_signal_handler(number, run.interrupt)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            events.remove_signal_handler(number)
