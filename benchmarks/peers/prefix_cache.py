"""Engines with and without a prefix cache, in turn: `make prefix-cache`.

Two workloads: requests that share a prompt of 1,000 tokens, and conversations of 8 turns. Each
round starts every engine without and with its cache. A start loads the engine anew, so the cache is
empty. Prints output tokens per second (medians over the rounds), the gain, and the share of the
prompts' tokens that were cached. The environments are those of `make peers`.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.machine import describe_machine
from benchmarks.peers.__main__ import Candidate, Result, candidates, has_bf16_products, run
from benchmarks.peers.workload import (
    MODELS,
    make_conversations,
    make_model,
    make_shared_prefix,
    write_requests,
)

WORKLOADS = {"shared prompt": make_shared_prefix, "conversations": make_conversations}
BEST_VLLM = "vLLM, 2 threads, " + ("bfloat16" if has_bf16_products() else "float32")
TIMEOUT_S = 900.0


def chosen(folder: Path) -> list[Candidate]:
    """tdpipe with two stages and its default policy, and vLLM's best setting on CPUs."""
    names = {"tdpipe, 2 stages, temporal", BEST_VLLM}
    return [c for c in candidates(folder, folder / "data") if c.name in names]


def table(found: dict[tuple[str, str, bool], list[Result]]) -> list[str]:
    """The table as Markdown."""
    lines = [
        "| workload | engine | without, tokens/s | with | gain | cached |",
        "|---|---|---|---|---|---|",
    ]
    for workload, engine in dict.fromkeys((w, e) for w, e, _ in found):
        without, cached = (found[workload, engine, is_on] for is_on in (False, True))
        if not without or not cached:
            lines.append(f"| {workload} | {engine} | not run | | | |")
            continue
        before, after = (
            statistics.median(r.rate for r in results) for results in (without, cached)
        )
        share = statistics.median(r.cached_share for r in cached)
        figures = f"{before:,.0f} | {after:,.0f} | {after / before:.2f} | {share:.0%}"
        lines.append(f"| {workload} | {engine} | {figures} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run all and print the table. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="make prefix-cache ARGS=...", description=__doc__)
    add = parser.add_argument
    add("--folder", type=Path, default=Path(".venv-peers"), help="environments, models, data")
    add("--model", choices=MODELS, default="llama-120m", help="[llama-120m]")
    add("--rounds", type=int, default=3, help="starts of each engine, with and without [3]")
    options = parser.parse_args(argv)
    folder: Path = options.folder.resolve()
    checkpoint = make_model(folder / "models", options.model)
    found: dict[tuple[str, str, bool], list[Result]] = {}
    for _ in range(options.rounds):
        for workload, make in WORKLOADS.items():
            requests = folder / f"{workload.replace(' ', '_')}.json"
            write_requests(make(), requests)
            for candidate in chosen(folder):
                for is_on in (False, True):
                    results = found.setdefault((workload, candidate.name, is_on), [])
                    settings = {**candidate.settings, "enable_prefix_caching": is_on}
                    one = replace(candidate, settings=settings)
                    try:
                        results += run(one, one.command(checkpoint, requests, 1), TIMEOUT_S)
                    except (RuntimeError, OSError) as error:
                        print(f"{workload}, {candidate.name}: {error}", file=sys.stderr)
    machine = describe_machine()
    print(f"{options.model}; {machine['cpu']}, {machine['num_cores']} cores\n")
    print("\n".join(table(found)))
    return 0 if any(found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
