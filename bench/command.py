"""`tdpipe bench [URL]`: measures any OpenAI-compatible server under load.

Flags have the names of `vllm bench serve` where it has them.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench.call import Call
from bench.exchange import Address
from bench.filler_text import FillerText
from bench.load_run import Bounds
from bench.measurement import Figures, measure, send_all
from bench.options import MISUSED, make_parser
from bench.results.plot import PLOT_MARK, draw
from bench.results.report import table
from bench.server import LoadError, LoadTarget, describe_server, probe, when_ready
from bench.workload import (
    DEFAULT_WORKLOAD,
    calls_of_dataset,
    calls_of_workload,
    make_requests,
    probe_fields,
    with_arrivals,
)
from configs.output_files import check_outputs
from simulator.workloads.request import WorkloadError

REPORT_MARK = '{"settings":{'
"""The begin of every report, see `configs.output_files`."""
FAILED, INTERRUPTED = 1, 130
# The seeds of warm-up requests: none of them is the prompt of a measured one.
_WARM_UP_SEED = -1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one load; the exit code: 0, 1 if a request failed, 2 for misuse, 130 after Ctrl-C."""
    options = make_parser().parse_args(argv)
    try:
        _check_outputs(options)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            report = runner.run(_run(options))
        _write(report, options)
    except (WorkloadError, LoadError, OSError) as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)
        return MISUSED
    except KeyboardInterrupt:
        return INTERRUPTED
    if report["ending"] == "interrupted":
        return INTERRUPTED
    return FAILED if report["summary"]["num_failed"] else 0


async def _run(options: argparse.Namespace) -> dict[str, Any]:
    is_generated = options.dataset_path is None
    requests = make_requests(options, options.seed) if is_generated else []
    calls = [] if is_generated else calls_of_dataset(options)
    target = LoadTarget(options.address, options.model)
    patience_s = options.ready_check_timeout_sec
    server = await when_ready(partial(describe_server, target), patience_s)
    needs_words = options.prompts == "text" and any(
        not isinstance(request.prompt, str) for request in requests
    )
    endpoint = calls[0].endpoint if calls else options.endpoint
    fields = probe_fields(options)
    probed = await when_ready(
        partial(probe, target, server["model"], endpoint, fields, counts_words=needs_words),
        patience_s,
    )
    if needs_words:
        print(_words(probed.filler))
    target = replace(target, include_usage=probed.include_usage)
    fit = partial(
        calls_of_workload,
        options=options,
        filler=probed.filler,
        max_model_len=server["max_model_len"],
    )
    warm_up: Sequence[Call] = calls
    if is_generated:
        calls, num_shortened = fit(requests)
        if num_shortened:
            length = server["max_model_len"]
            print(f"{num_shortened} requests were shortened to the model's {length} tokens")
        warm_up, _ = fit(make_requests(options, _WARM_UP_SEED - abs(options.seed)))
    calls = with_arrivals(calls, options.request_rate, options.burstiness, options.seed)
    bounds = Bounds(options.request_timeout, options.timeout, options.max_concurrency)
    await _warm_up(warm_up, options.num_warmups, target, server["model"], bounds)
    figures = Figures(options.metric_percentiles, dict(options.goodput or ()))
    report = await measure(calls, target, bounds, figures)
    return {"settings": _settings(options)} | report


async def _warm_up(
    calls: Sequence[Call], count: int, target: LoadTarget, model: str, bounds: Bounds
) -> None:
    """Send `count` calls, from the first one again if there are fewer, without measuring them."""
    if not count:
        return
    chosen = [replace(call, arrival_s=None, answer=None) for call in islice(cycle(calls), count)]
    _, ending = await send_all(chosen, target, model, bounds)
    if ending == "interrupted":
        raise KeyboardInterrupt


def _words(filler: FillerText) -> str:
    if filler == FillerText():
        return "prompts have a word for each token: the server does not count tokens"
    return f"prompts are words of {filler.tokens_per_word:.2f} tokens on average"


def _check_outputs(options: argparse.Namespace) -> None:
    """Refused before the run if they could not be written after it. Raises `OSError`."""
    marks = {options.output: REPORT_MARK, options.plot: PLOT_MARK}
    outputs: dict[Path, str] = {path: mark for path, mark in marks.items() if path is not None}
    check_outputs(outputs, overwrite=options.overwrite)


def _write(report: dict[str, Any], options: argparse.Namespace) -> None:
    title = _title(options, report)
    print(title)
    print(table(report, options.max_concurrency))
    if options.output is not None:
        options.output.write_bytes(msgspec.json.encode(report) + b"\n")
    if options.plot is not None:
        draw(report, options.plot, title)


def _title(options: argparse.Namespace, report: dict[str, Any]) -> str:
    count, model = report["summary"]["num_requests"], report["server"]["model"]
    what = f"{count} requests, {options.dataset_path or options.workload or DEFAULT_WORKLOAD}"
    scale = f" x {options.scale:g}" if options.scale != 1 else ""
    rate = f", {options.request_rate:g} requests/s" if options.request_rate else ""
    limit = f", at most {options.max_concurrency} open" if options.max_concurrency else ""
    return f"{model} at {options.address}: {what}{scale}{rate}{limit}, seed {options.seed}"


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings for the report, without keys."""
    secret = ("api_key", "header", "output", "plot", "overwrite")
    return {name: _plain(value) for name, value in vars(options).items() if name not in secret}


def _plain(value: object) -> object:
    """A value that JSON can hold: infinity is not a number there."""
    return str(value) if isinstance(value, Address | Path) or value == float("inf") else value


if __name__ == "__main__":
    sys.exit(main())
