"""A measurement: sends all requests of a workload to a daemon and reports the answers."""

import asyncio
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
from tqdm import tqdm

from bench.daemon_figures import growth, read_figures, read_settled_figures
from bench.exchange import Address, exchange, fetch
from bench.load_run import Bounds, LoadRun
from bench.record import Record
from bench.report import describe_request
from bench.summary import summarise
from bench.machine import describe_machine, describe_versions
from daemon.gc_tuning import GcTuning
from simulator.workloads.request import Request

PATH = "/v1/completions"


class LoadError(Exception):
    """The daemon cannot be reached or used; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """The daemon and its settings; without `model`, the first model that the daemon lists."""

    address: Address
    model: str | None = None
    temperature: float = 0.0


async def measure(
    requests: Sequence[Request], target: LoadTarget, bounds: Bounds
) -> dict[str, Any]:
    """Send all requests and report. Raises `LoadError` if there is no daemon."""
    address = target.address
    server = await _describe_server(target)
    before = await read_figures(address)
    report = {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "server": server,
        "machine": describe_machine(),
        "versions": describe_versions(),
    }
    calls = [address.post(PATH, _body(r, server["model"], target.temperature)) for r in requests]
    GcTuning()  # a collection over all requests took a second, which was part of the latencies
    cpu_before_s = time.process_time()
    loop, ending = await _send_all(requests, calls, address, bounds)
    client_cpu_s = time.process_time() - cpu_before_s
    after = await read_settled_figures(address)
    return report | {
        "ending": ending,
        "client_cpu_s": client_cpu_s,
        "summary": summarise(requests, loop.records, loop.duration_s),
        "daemon": growth(before, after) if before and after else None,
        "requests": [describe_request(record) for record in loop.records],
    }


async def _send_all(
    requests: Sequence[Request], calls: Sequence[bytes], address: Address, bounds: Bounds
) -> tuple[LoadRun, str]:
    with tqdm(total=len(requests), unit="req", disable=None) as bar:
        num_tokens = 0

        async def ask(index: int, record: Record) -> None:
            def take(status: int, data: bytes) -> None:
                record.feed(status, data, loop.now())

            status = await exchange(address, calls[index], take)
            record.end(status, loop.now())

        def advance(record: Record) -> None:
            nonlocal num_tokens
            num_tokens += record.num_output_tokens
            bar.set_postfix_str(f"{num_tokens / loop.now():.0f} tokens/s", refresh=False)
            bar.update()

        loop = LoadRun([request.arrival_s or 0.0 for request in requests], ask, bounds, advance)
        with _interrupting(loop):
            ending = await loop.run()
    return loop, ending


@contextmanager
def _interrupting(loop: LoadRun) -> Iterator[None]:
    """Ctrl-C ends the run, and the answers so far are still reported."""
    events = asyncio.get_running_loop()
    events.add_signal_handler(signal.SIGINT, loop.interrupt)
    try:
        yield
    finally:
        events.remove_signal_handler(signal.SIGINT)


async def _describe_server(target: LoadTarget) -> dict[str, Any]:
    """The model, its longest sequence and the daemon's version, as the daemon reports them."""
    served = await _get_json(target.address, "/v1/models")
    models = {model["id"]: model for model in served.get("data", [])} if served else {}
    if not models:
        raise LoadError(f"no OpenAI API at {target.address}: /v1/models names no model")
    name = target.model or next(iter(models))
    if name not in models:
        raise LoadError(f"no model {name!r} at {target.address}: {', '.join(models)}")
    version = await _get_json(target.address, "/version")
    return {
        "model": name,
        "max_model_len": models[name].get("max_model_len"),
        "version": version.get("version") if version else None,
    }


async def _get_json(address: Address, path: str) -> dict[str, Any] | None:
    """The object at `path`; None where there is none. Raises `LoadError` without a server."""
    try:
        status, body = await fetch(address, path)
    except OSError as error:
        raise LoadError(f"no daemon at {address}: {error.strerror or error}") from error
    if status != 200:
        return None
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return None


def _body(request: Request, model: str, temperature: float) -> bytes:
    body: dict[str, Any] = {
        "model": model,
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    # Only if they are needed: OpenAI itself does not accept these fields.
    if request.ignore_eos:
        body["ignore_eos"] = True
    if request.expected_tokens is not None:
        body["expected_tokens"] = request.expected_tokens
    return msgspec.json.encode(body)
