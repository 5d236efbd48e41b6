"""The load client: `python -m benchmarks.load --workload sharegpt:200 --request-rate 8`.

Streams completions in an open loop and reports latencies, throughput and the daemon's own figures.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.exchange import Address
from bench.measurement import LoadError, LoadTarget, measure
from bench.load_run import Bounds
from bench.report import table
from configs.output_files import has_mark
from simulator.argument_types import positive, positive_int
from simulator.workloads.make_workload import (
    KINDS,
    add_workload_options,
    workload_of,
)
from simulator.workloads.request import WorkloadError

# The begin of a report, see `configs.output_files`.
_REPORT_MARK = '{"settings":{'
FAILED, MISUSED, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one load; the exit code: 0, 1 if a request failed, 2 for misuse, 130 after Ctrl-C."""
    options = _parser().parse_args(argv)
    try:
        report = _run(options)
    except (WorkloadError, LoadError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    print(_title(options, report["server"]["model"]))
    print(table(report))
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode(report) + b"\n")
    if report["ending"] == "interrupted":
        return INTERRUPTED
    return FAILED if report["summary"]["num_failed"] else 0


def _run(options: argparse.Namespace) -> dict[str, Any]:
    requests = workload_of(options)
    target = LoadTarget(options.url, options.model, options.temperature)
    bounds = Bounds(options.request_timeout, options.timeout, options.max_concurrency)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(measure(requests, target, bounds))
    settings = {name: _plain(value) for name, value in vars(options).items() if name != "json"}
    return {"settings": settings} | report


def _title(options: argparse.Namespace, model: str) -> str:
    scale = f" x {options.scale:g}" if options.scale != 1 else ""
    rate = f", {options.request_rate:g} requests/s" if options.request_rate else ""
    return f"{model} at {options.url}: {options.workload}{scale}{rate}, seed {options.seed}"


def _plain(value: object) -> object:
    """A value that JSON can hold: infinity is not a number there."""
    return str(value) if isinstance(value, Address) or value == float("inf") else value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.load",
        description="Load a running daemon with streamed completions and measure it.",
        epilog=KINDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    default_url = "http://127.0.0.1:8000"
    add("--url", type=_address, default=default_url, help=f"the daemon [{default_url}]")
    add("--model", help="its name in the API [the first that is served]")
    add_workload_options(parser)
    add("--temperature", type=float, default=0.0, help="of the sampling [0, greedy]")
    add("--max-concurrency", type=positive_int, help="requests open at one time [no limit]")
    add("--request-timeout", type=positive, default=300.0, help="seconds for one request [300]")
    add("--timeout", type=positive, default=3600.0, help="seconds for the whole run [3600]")
    add("--json", type=_new_file, help="write everything to this file, as one JSON object")
    return parser


def _address(url: str) -> Address:
    try:
        return Address.of(url)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _new_file(text: str) -> Path:
    """Refused before the run if it could not be written after it."""
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is not in a folder that exists")
    if path.exists() and not has_mark(path, _REPORT_MARK):
        raise argparse.ArgumentTypeError(f"{text} exists and is no report of this command")
    return path


if __name__ == "__main__":
    sys.exit(main())
