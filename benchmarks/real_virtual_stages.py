"""Virtual stages on two CPU stages: `make real-virtual-stages`.

A random Llama of 16 layers in fp32, one thread per stage, with 1, 2 and 4 virtual stages per stage:
the seconds until all of a few long prompts have their first token, of switches between a prompt
and the decodes of others, and output tokens/s of steady decoding. The sizes run in turn, and the
figures are medians over the rounds, with the fastest round beside them. All must give the same
tokens. Prints Markdown.
"""

import argparse
import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import httpx
from tqdm import tqdm

from benchmarks.daemon_run import log_of, serving
from benchmarks.real_policies import make_random_llama

NUM_STAGES, NUM_LAYERS = 2, 16
SIZES = (1, 2, 4)
PATIENCE_S = 300.0


class Case(NamedTuple):
    """Requests that are sent at once: how many, their prompts and answers, in tokens."""

    num_prompts: int
    prompt_len: int
    answer_len: int

    @property
    def title(self) -> str:
        """What is sent, in words."""
        prompts = "1 prompt" if self.num_prompts == 1 else f"{self.num_prompts} prompts"
        answers = "first token" if self.answer_len == 1 else f"answers of {self.answer_len}"
        return f"{prompts} of {self.prompt_len:,} tokens, {answers}"


CASES = (
    Case(1, 2000, 1),
    Case(2, 1000, 1),
    Case(4, 500, 1),
    Case(16, 125, 1),
    Case(4, 500, 32),
    Case(16, 16, 48),
)

Found = dict[tuple[Case, int], list[float]]
"""Seconds by case and number of virtual stages."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a daemon failed or tokens differ."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_virtual_stages", description=__doc__
    )
    parser.add_argument("--rounds", type=int, default=3, help="starts of each size [3]")
    parser.add_argument("--runs", type=int, default=3, help="of each case in a start [3]")
    options = parser.parse_args(argv)
    seconds: Found = {key: [] for key in product(CASES, SIZES)}
    tokens: dict[int, list[str]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory(prefix="tdpipe-virtual-") as temporary:
        model = make_random_llama(Path(temporary) / "llama", num_layers=NUM_LAYERS)
        turns = list(product(range(options.rounds), SIZES))
        for number, (_, size) in enumerate(tqdm(turns, file=sys.stderr)):
            folder = Path(temporary) / str(number)
            flags = ["--policy=td-pipe", f"--virtual-pipeline-size={size}", "--dtype=float32"]
            # One data folder for all: the kernels are compiled and the steps measured once.
            flags += ["--no-enable-prefix-caching", f"--data-dir={folder.parent / 'data'}"]
            try:
                with serving(model, NUM_STAGES, flags, folder) as url:
                    tokens[size] += measure(url, size, options.runs, seconds)
            except (OSError, subprocess.SubprocessError, httpx.HTTPError) as error:
                print(f"error: {size}: {error}\n{log_of(folder)}", file=sys.stderr)
                return 1
    print("\n".join(table(seconds)))
    are_equal = all(tokens[size] == tokens[SIZES[0]] for size in SIZES)
    print(f"\nThe tokens are {'equal' if are_equal else 'NOT equal'}.")
    return 0 if are_equal else 1


def measure(url: str, size: int, runs: int, seconds: Found) -> list[str]:
    """Run all cases `runs` times; returns all answers."""
    answers = []
    for case in CASES:
        for run in range(runs + 1):
            began_at = time.monotonic()
            answers += asyncio.run(_ask(url, case, run))
            if run:  # the first one warms up
                seconds[case, size].append(time.monotonic() - began_at)
    return answers


async def _ask(url: str, case: Case, run: int) -> list[str]:
    draw = random.Random(f"{case} {run}")
    prompts = [
        [draw.randrange(100, 700) for _ in range(case.prompt_len)] for _ in range(case.num_prompts)
    ]
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        replies = await asyncio.gather(
            *(
                client.post(
                    f"{url}/v1/completions",
                    json={
                        "prompt": prompt,
                        "max_tokens": case.answer_len,
                        "temperature": 0,
                        "ignore_eos": True,
                    },
                )
                for prompt in prompts
            )
        )
    return [reply.raise_for_status().json()["choices"][0]["text"] for reply in replies]


def table(seconds: Found) -> list[str]:
    """The table as Markdown: medians and fastest runs, and their ratios to one virtual stage."""
    sizes = " | ".join(f"with {size}, s" for size in SIZES)
    ratios = " | ".join(f"time with {size}" for size in SIZES[1:])
    lines = [f"| requests | {sizes} | {ratios} |", "|---|" + "--:|" * (2 * len(SIZES) - 1)]
    for case in CASES:
        found = [seconds[case, size] for size in SIZES]
        cells = [f"{statistics.median(each):.2f} ({min(each):.2f})" for each in found]
        base, *more = found
        for each in more:
            ratio = statistics.median(each) / statistics.median(base)
            cells.append(f"{ratio:.3f} ({min(each) / min(base):.3f})")
        lines.append(f"| {case.title} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
