"""Workloads: what to ask, how long the answers are, and when; the same for the same seed.

`python -m simulator.workloads.make_workload --workload sharegpt:200 > mine.jsonl` writes a workload
as a file, and its lengths to standard error.
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
from simulator.workloads.arrivals import arrival_times
from simulator.workloads.request import Request, WorkloadError
from simulator.workloads.request_file import read_requests, to_line
from simulator.workloads.sharegpt import draw_lengths

KINDS = """\
workloads:
  sharegpt:N      lengths like ShareGPT's, random token ids, forced output lengths
  demo:N          held-out tasks of the demo model with their right answers, natural ends
  fixed:N:IN:OUT  N requests of IN random token ids and OUT tokens each
  jsonl:PATH      one's own, a request per line: prompt or prompt_token_ids, max_tokens, and if
                  wanted ignore_eos, answer (the right one), arrival_s and expected_tokens
"""

# Most vocabularies begin with their special tokens.
FIRST_TOKEN_ID = 3
# The demo model's; any larger vocabulary has these ids too.
DEFAULT_VOCAB_SIZE = 768
# A token is at least a byte, and what comes this far beyond the right answer is wrong anyway.
SPARE_TOKENS = 8


def make_workload(
    name: str, *, seed: int = 0, scale: float = 1.0, vocab_size: int = DEFAULT_VOCAB_SIZE
) -> list[Request]:
    """The requests of the workload `name`, see `KINDS`. Raises `WorkloadError`.

    Only a file says when they arrive; the others are there at once, or see `with_arrivals`.
    """
    kind, _, rest = name.partition(":")
    rng = random.Random(f"{kind} {seed}")
    if kind == "sharegpt":
        (count,) = _numbers(name, rest, "sharegpt:N")
        return _random_prompts(draw_lengths(count, rng, scale), vocab_size, rng)
    if kind == "demo":
        (count,) = _numbers(name, rest, "demo:N")
        return _demo(count, seed)
    if kind == "fixed":
        count, num_input, num_output = _numbers(name, rest, "fixed:N:IN:OUT")
        return _random_prompts([(num_input, num_output)] * count, vocab_size, rng)
    if kind == "jsonl":
        return read_requests(Path(rest))
    raise WorkloadError(
        f"unknown workload {name!r}: it is sharegpt:N, demo:N, fixed:N:IN:OUT or jsonl:PATH"
    )


def with_arrivals(
    requests: Sequence[Request], rate: float, burstiness: float, seed: int
) -> list[Request]:
    """The requests at `rate` per second. Raises `WorkloadError` where a file says their times."""
    if requests[0].arrival_s is not None:
        raise WorkloadError("the workload has its own arrivals: leave out --request-rate")
    times = arrival_times(len(requests), rate, burstiness, seed)
    return [replace(r, arrival_s=time) for r, time in zip(requests, times, strict=True)]


def add_workload_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is asked and when."""
    add = parser.add_argument
    add("--workload", required=True, help="which requests, see below")
    add("--seed", type=int, default=0, help="of lengths, prompts and arrivals [0]")
    add("--scale", type=positive, default=1.0, help="factor on sharegpt's lengths [1]")
    add(
        "--vocab-size",
        type=int,
        default=DEFAULT_VOCAB_SIZE,
        help=f"random token ids are below this [{DEFAULT_VOCAB_SIZE}, the demo model's]",
    )
    add("--request-rate", type=positive_or_inf, help="requests per second, or inf [all at once]")
    add(
        "--burstiness",
        type=positive,
        default=1.0,
        help="1 is a Poisson stream, less is burstier, more is steadier [1]",
    )


def workload_of(options: argparse.Namespace) -> list[Request]:
    """The requests that `add_workload_options` describes. Raises `WorkloadError`."""
    requests = make_workload(
        options.workload, seed=options.seed, scale=options.scale, vocab_size=options.vocab_size
    )
    if options.request_rate is None:
        return requests
    return with_arrivals(requests, options.request_rate, options.burstiness, options.seed)


def positive(text: str) -> float:
    """A finite number above zero, as argparse wants its types."""
    number = positive_or_inf(text)
    if math.isinf(number):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return number


def positive_or_inf(text: str) -> float:
    """A number above zero, infinity included, as argparse wants its types."""
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def not_negative(text: str) -> float:
    """A finite number of 0 or more, as argparse wants its types."""
    return 0.0 if float(text) == 0 else positive(text)


def positive_int(text: str) -> int:
    """A whole number above zero, as argparse wants its types."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write a workload as JSONL to standard output; the exit code."""
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
    """The positive whole numbers after the workload's kind, as many as `form` has."""
    parts = rest.split(":")
    if len(parts) != form.count(":") or not all(p.isdecimal() and int(p) for p in parts):
        raise WorkloadError(f"workload {name!r} must be {form}, in numbers above 0")
    return [int(part) for part in parts]


def _random_prompts(
    lengths: Sequence[tuple[int, int]], vocab_size: int, rng: random.Random
) -> list[Request]:
    """Random ids, so that no two prompts share a prefix; the outputs' lengths are forced."""
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
