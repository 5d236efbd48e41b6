"""The calls of a run: those of a generated workload or of a dataset, at their arrival times."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.call import Call, call_of
from bench.dataset import LineDefaults, read_dataset
from bench.filler_text import FillerText
from simulator.workloads.lengths import LENGTHS
from simulator.workloads.make_workload import arrival_times, make_workload
from simulator.workloads.request import Request, WorkloadError

DEFAULT_WORKLOAD, DEFAULT_NUM_PROMPTS = "sharegpt", 100
# Kinds that need only a number of requests: --num-prompts may give it.
COUNTED = ("sharegpt", "demo", *LENGTHS)
# The filler text's words are counted with an error; a prompt may get this much longer.
LENGTH_MARGIN = 0.05


def make_requests(options: argparse.Namespace, seed: int) -> list[Request]:
    """The requests of the generated workload. Raises `WorkloadError`."""
    name, count = options.workload or DEFAULT_WORKLOAD, options.num_prompts
    if name in COUNTED:
        name = f"{name}:{count or DEFAULT_NUM_PROMPTS}"
    requests = make_workload(name, seed=seed, scale=options.scale, vocab_size=options.vocab_size)
    if any(request.after is not None for request in requests):
        raise WorkloadError("conversations (chat:…) are only for the simulator")
    return requests[:count]


def calls_of_workload(
    requests: Sequence[Request],
    options: argparse.Namespace,
    filler: FillerText,
    max_model_len: int | None,
) -> tuple[list[Call], int]:
    """The calls, and how many were shortened to what the server's model can hold."""
    calls, num_shortened = [], 0
    for request in requests:
        fitted = _fitted(request, max_model_len)
        num_shortened += fitted is not request
        if options.prompts == "text" and not isinstance(fitted.prompt, str):
            fitted = replace(fitted, prompt=filler.text(fitted.prompt))
        if options.ignore_eos is not None:
            fitted = replace(fitted, ignore_eos=options.ignore_eos)
        calls.append(call_of(fitted, options.endpoint, options.overrides))
    return calls, num_shortened


def calls_of_dataset(options: argparse.Namespace) -> list[Call]:
    """The calls of the file, at most `--num-prompts`. Raises `WorkloadError`."""
    ignores = {} if options.ignore_eos is None else {"ignore_eos": options.ignore_eos}
    overrides = {**options.overrides, **ignores}
    defaults = LineDefaults(options.endpoint, options.output_len, overrides)
    return read_dataset(options.dataset_path, defaults)[: options.num_prompts]


def with_arrivals(
    calls: Sequence[Call], rate: float | None, burstiness: float, seed: int
) -> list[Call]:
    """The calls at `rate` per second; None: as they are. Raises `WorkloadError`."""
    if rate is None:
        return list(calls)
    if calls[0].arrival_s is not None:
        raise WorkloadError("the requests have arrival times: leave out --request-rate")
    times = arrival_times(len(calls), rate, burstiness, seed)
    return [replace(call, arrival_s=at) for call, at in zip(calls, times, strict=True)]


def _fitted(request: Request, max_model_len: int | None) -> Request:
    """The request, or a shorter one if the model cannot hold it; texts are left as they are."""
    if max_model_len is None or isinstance(request.prompt, str):
        return request
    longest = int(max_model_len * (1 - LENGTH_MARGIN))
    if len(request.prompt) + request.max_tokens <= longest:
        return request
    num_output = min(request.max_tokens, max(1, longest // 2))
    num_prompt = max(1, min(len(request.prompt), longest - num_output))
    return replace(request, prompt=request.prompt[:num_prompt], max_tokens=num_output)


def probe_fields(options: argparse.Namespace) -> Mapping[str, Any]:
    """What the probes should carry besides their prompts: fields that a server may refuse."""
    is_forced = options.dataset_path is None and options.ignore_eos is not False
    forced = {"ignore_eos": True} if is_forced or options.ignore_eos else {}
    return {**forced, **options.overrides}
