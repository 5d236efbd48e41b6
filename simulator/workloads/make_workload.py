"""Workloads: prompts, output lengths and arrival times, reproducible by seed.

`python -m simulator.workloads.make_workload --workload sharegpt:200 > mine.jsonl` writes a workload
to a file, and a summary of its lengths to standard error.
"""

import argparse
import math
import random
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from demo.tasks import held_out
from simulator.argument_types import positive, positive_int, positive_or_inf, within
from simulator.workloads.lengths import LENGTHS
from simulator.workloads.request import Request, WorkloadError
from simulator.workloads.request_file import read_requests, to_line
from simulator.workloads.sharegpt import draw_lengths

KINDS = """\
workloads:
  sharegpt:N      lengths like those of ShareGPT, random token ids, forced output lengths
  alpaca:N        short prompts and medium answers, as instructions have them
  longbench:N     prompts of 2,700 tokens on average and short answers, as of long documents
  demo:N          held-out tasks of the demo model with their correct answers, natural ends
  fixed:N:IN:OUT  N requests of IN random token ids and OUT tokens each
  shared:N:PREFIX:IN:OUT
                  N requests that begin with the same PREFIX token ids (a system prompt), and IN
                  random ones
  chat:N:TURNS:IN:OUT
                  N conversations of TURNS turns, IN random token ids and OUT tokens in each; only
                  for the simulator
  jsonl:PATH      a file, one request per line: prompt or prompt_token_ids, max_tokens; optional
                  ignore_eos, answer (the correct one), arrival_s and expected_tokens
"""

# Several hours of the largest node, and what fits in memory.
MOST_REQUESTS, MOST_TOKENS = 1_000_000, 100_000_000
# Smaller ids are special tokens in most vocabularies.
FIRST_TOKEN_ID = 3
# The vocabulary of the demo model; larger vocabularies have these ids as well.
DEFAULT_VOCAB_SIZE = 768
# Tokens beyond the bytes of the correct answer: a token has at least one byte.
SPARE_TOKENS = 8


def make_workload(
    name: str, *, seed: int = 0, scale: float = 1.0, vocab_size: int = DEFAULT_VOCAB_SIZE
) -> list[Request]:
    """The requests of the workload `name`, see `KINDS`. Raises `WorkloadError`.

    Only files have arrival times; other requests are present at the start, see `with_arrivals`.
    """
    kind, _, rest = name.partition(":")
    rng = random.Random(f"{kind} {seed}")
    if kind == "sharegpt":
        (count,) = _numbers(name, rest, "sharegpt:N")
        return _random_prompts(draw_lengths(count, rng, scale), vocab_size, rng)
    if kind in LENGTHS:
        (count,) = _numbers(name, rest, f"{kind}:N")
        return _random_prompts(LENGTHS[kind](count, rng), vocab_size, rng)
    if kind == "demo":
        (count,) = _numbers(name, rest, "demo:N")
        return _demo(count, seed)
    if kind == "fixed":
        count, num_input, num_output = _numbers(name, rest, "fixed:N:IN:OUT")
        return _random_prompts([(num_input, num_output)] * count, vocab_size, rng)
    if kind == "shared":
        count, num_shared, num_input, num_output = _numbers(name, rest, "shared:N:PREFIX:IN:OUT")
        (prefix,) = _random_prompts([(num_shared, 1)], vocab_size, rng)
        requests = _random_prompts([(num_input, num_output)] * count, vocab_size, rng)
        return [replace(r, prompt=(*prefix.prompt, *r.prompt)) for r in requests]
    if kind == "chat":
        count, num_turns, num_input, num_output = _numbers(name, rest, "chat:N:TURNS:IN:OUT")
        all_turns = count * num_turns
        _check_plausible(name, all_turns, all_turns * num_turns * (num_input + num_output))
        turns = _random_prompts([(num_input, num_output)] * all_turns, vocab_size, rng)
        return [replace(r, after=i - 1) if i % num_turns else r for i, r in enumerate(turns)]
    if kind == "jsonl":
        return read_requests(Path(rest))
    raise WorkloadError(
        f"unknown workload {name!r}: it is sharegpt:N, alpaca:N, longbench:N, demo:N, "
        "fixed:N:IN:OUT, shared:N:PREFIX:IN:OUT, chat:N:TURNS:IN:OUT or jsonl:PATH"
    )


def with_arrivals(
    requests: Sequence[Request], rate: float, burstiness: float, seed: int
) -> list[Request]:
    """The requests at `rate` per second, and the further turns of conversations at once.

    Raises `WorkloadError` if a file has arrival times.
    """
    if requests[0].arrival_s is not None:
        raise WorkloadError("the workload has arrival times: leave out --request-rate")
    first = [request for request in requests if request.after is None]
    times = iter(arrival_times(len(first), rate, burstiness, seed))
    return [replace(r, arrival_s=next(times) if r.after is None else 0.0) for r in requests]


def arrival_times(count: int, rate: float, burstiness: float, seed: int) -> list[float]:
    """`count` arrival times in seconds, ascending from 0; `rate` requests per second on average.

    The gaps follow a gamma distribution of shape `burstiness`, as in vLLM's `bench serve`: 1 is a
    Poisson process, less is burstier, more is steadier. With an infinite rate all are 0.
    """
    if math.isinf(rate):
        return [0.0] * count
    rng = random.Random(f"arrivals {seed}")
    times, now = [], 0.0
    for _ in range(count):
        times.append(now)
        now += rng.gammavariate(burstiness, 1 / (rate * burstiness))
    return times


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a workload and its arrival times."""
    add = parser.add_argument
    add("--workload", required=True, help="the requests, see below")
    add("--seed", type=int, default=0, help="seed of lengths, prompts and arrivals [0]")
    add(
        "--scale",
        type=within(positive, 1e-3, 1e3, "times"),
        default=1.0,
        help="factor on the lengths of sharegpt [1]",
    )
    add(
        "--vocab-size",
        type=within(positive_int, 1, 1e8, "token ids"),
        default=DEFAULT_VOCAB_SIZE,
        help=f"random token ids are below this [{DEFAULT_VOCAB_SIZE}, as in the demo model]",
    )
    add(
        "--request-rate",
        type=within(positive_or_inf, 1e-6, 1e6, "requests/s"),
        help="requests per second, or inf [all at once]",
    )
    add(
        "--burstiness",
        type=within(positive, 1e-3, 1e6, "as a shape"),
        default=1.0,
        help="1 is a Poisson process, less is burstier, more is steadier [1]",
    )


def workload_of(options: argparse.Namespace, *, simulated: bool = False) -> list[Request]:
    """The requests that the options describe. Raises `WorkloadError`."""
    requests = make_workload(
        options.workload, seed=options.seed, scale=options.scale, vocab_size=options.vocab_size
    )
    if not simulated and any(request.after is not None for request in requests):
        raise WorkloadError("conversations (chat:…) are only for the simulator")
    if options.request_rate is None:
        return requests
    return with_arrivals(requests, options.request_rate, options.burstiness, options.seed)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a workload as JSONL to standard output. Returns 0, or 2 after an error."""
    parser = argparse.ArgumentParser(
        prog="python -m simulator.workloads.make_workload",
        description="Write a workload as JSONL to standard output.",
        epilog=KINDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_workload_options(parser)
    options = parser.parse_args(argv)
    try:
        requests = workload_of(options)
    except WorkloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for request in requests:
        print(to_line(request))
    num_inputs = [len(r.prompt) for r in requests if not isinstance(r.prompt, str)]
    if num_inputs:
        print(_spread("input tokens", num_inputs), file=sys.stderr)
    print(_spread("max_tokens", [r.max_tokens for r in requests]), file=sys.stderr)
    return 0


def _numbers(name: str, rest: str, form: str) -> list[int]:
    """The positive integers after the kind of the workload, as many as in `form`."""
    parts = rest.split(":")
    if len(parts) != form.count(":") or not all(p.isdecimal() and int(p) for p in parts):
        raise WorkloadError(f"workload {name!r} must be {form}, with numbers above 0")
    count, *lengths = (int(part[:20]) for part in parts)
    _check_plausible(name, count, count * max(lengths, default=1))
    return [int(part) for part in parts]


def _check_plausible(name: str, num_requests: int, num_tokens: int) -> None:
    if num_requests > MOST_REQUESTS or num_tokens > MOST_TOKENS:
        raise WorkloadError(
            f"workload {name!r} cannot be: at most {MOST_REQUESTS:g} requests and {MOST_TOKENS:g} "
            "tokens are plausible"
        )


def _random_prompts(
    lengths: Sequence[tuple[int, int]], vocab_size: int, rng: random.Random
) -> list[Request]:
    """Random ids, so that no prompts share a prefix; output lengths are forced."""
    if vocab_size <= FIRST_TOKEN_ID:
        raise WorkloadError(f"--vocab-size must be above {FIRST_TOKEN_ID}")
    ids = range(FIRST_TOKEN_ID, vocab_size)
    return [
        Request(tuple(rng.choices(ids, k=num_input)), num_output, ignore_eos=True)
        for num_input, num_output in lengths
    ]


def _demo(count: int, seed: int) -> list[Request]:
    try:
        tasks = held_out(count, seed)
    except ValueError as error:
        raise WorkloadError(f"demo:{count}: {error}") from error
    return [
        Request(task.prompt, len(task.answer.encode()) + SPARE_TOKENS, answer=task.answer)
        for task in tasks
    ]


def _spread(name: str, lengths: list[int]) -> str:
    ordered = sorted(lengths)
    p50, p90, p99 = (ordered[int(share * len(ordered))] for share in (0.5, 0.9, 0.99))
    mean = statistics.fmean(ordered)
    return f"{name}: mean {mean:.0f}, p50 {p50}, p90 {p90}, p99 {p99}, max {ordered[-1]}"


if __name__ == "__main__":
    sys.exit(main())
