"""One long prompt by itself: transformers' own prefill beside tdpipe's: `make long-prompt`.

Each round starts transformers with all cores, and tdpipe with one stage and with two, which share
the cores. Prints the seconds until the first token, as medians over the rounds.
"""

import argparse
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.machine import describe_machine
from benchmarks.peers.__main__ import Candidate, has_bf16_products, run
from benchmarks.peers.workload import Request, write_requests


def candidates(data_dir: Path) -> list[Candidate]:
    """transformers in bf16, and in fp32 where bf16 is slow; tdpipe in bf16."""
    python, cores = Path(sys.executable), psutil.cpu_count() or 1
    dtypes = ["bfloat16"] if has_bf16_products() else ["bfloat16", "float32"]
    return [
        *(
            Candidate(
                f"transformers, {dtype}, {cores} threads",
                "transformers",
                python,
                {"dtype": dtype, "threads": cores},
            )
            for dtype in dtypes
        ),
        *(
            Candidate(
                f"tdpipe, {stages} stages" if stages > 1 else "tdpipe, 1 stage",
                "tdpipe",
                python,
                {"pipeline_parallel_size": stages, "data_dir": str(data_dir)},
            )
            for stages in (1, 2)
        ),
    ]


def table(seconds: dict[str, list[float]]) -> list[str]:
    """The table as Markdown: medians, all figures, and the fastest of transformers over each."""
    medians = {name: statistics.median(found) for name, found in seconds.items()}
    theirs = min((s for name, s in medians.items() if name.startswith("transformers")), default=0.0)
    lines = ["| engine | seconds | all rounds | this / transformers' best |", "|---|---|---|---|"]
    for name, found in seconds.items():
        each = ", ".join(f"{s:.1f}" for s in found)
        ratio = f"{medians[name] / theirs:.2f}" if theirs else ""
        lines.append(f"| {name} | {medians[name]:.1f} | {each} | {ratio} |")
    return lines


def main(argv: Sequence[str]) -> int:
    """Run all candidates and print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make long-prompt ARGS=...", description=__doc__)
    add = parser.add_argument
    add("model", type=Path, help="folder of a checkpoint")
    add("--tokens", type=int, default=7000, help="length of the prompt [7000]")
    add("--rounds", type=int, default=2, help="starts of each engine [2]")
    add("--runs", type=int, default=1, help="runs in each start [1]")
    add("--timeout", type=float, default=600.0, help="seconds of one start [600]")
    add("--folder", type=Path, default=Path(".venv-peers"), help="data and requests")
    options = parser.parse_args(argv)
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "long_prompt.json"
    draw = random.Random(7)
    write_requests([Request([draw.randrange(100, 1000) for _ in range(options.tokens)], 1)], path)
    seconds: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for candidate in candidates(folder / "data"):
            command = candidate.command(options.model, path, options.runs)
            results = run(candidate, command, options.timeout)
            seconds.setdefault(candidate.name, []).extend(result.seconds for result in results)
            print(f"{candidate.name}: {seconds[candidate.name][-1]:.1f} s", file=sys.stderr)
    machine = describe_machine()
    print(f"{options.model.name}, {options.tokens} tokens; {machine['cpu']}, ", end="")
    print(f"{machine['num_cores']} cores\n")
    print("\n".join(table(seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
