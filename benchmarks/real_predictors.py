"""Predictors on real processes: `make real-predictors`.

Two CPU stages of the demo model, one thread each, with a KV cache small enough to matter, answer
held-out prompts to their natural ends, all at once, with limits far above the answers' lengths;
half of the prompts are those with the longest answers. The predictors run in turn, and the figures
are medians over the repeats. Prints Markdown.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from tqdm import tqdm

from benchmarks.daemon_run import log_of, measure
from configs.schema.model import DEMO_MODEL
from simulator.workloads.request import Request
from simulator.workloads.request_file import to_line

DEMO_PREDICTOR = DEMO_MODEL.parent / "predictor"
POLICIES = ("td-pipe", "temporal")
NUM_STAGES, MAX_TOKENS = 2, 400
# 1,600 tokens: about 25 of the workload's requests at their full length.
KV_BYTES = 1_600 * 3 * 2 * 2 * 32 * 2
# Among this many times the prompts, half of the workload are those with the longest answers.
DRAWN = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a daemon or a load failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_predictors", description=__doc__
    )
    parser.add_argument("--requests", type=int, default=300, help="[300]")
    parser.add_argument("--rounds", dest="repeats", type=int, default=3, help="[3]")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tdpipe-predictors-") as temporary:
        root = Path(temporary)
        blind, with_lengths, mean_len = _write_workloads(root, options.requests)
        predictors = {
            "oracle": ("oracle", with_lengths),
            "trained encoder": (str(DEMO_PREDICTOR), blind),
            "histogram": ("histogram", blind),
            f"constant, the mean of {mean_len:.0f}": (f"constant:{mean_len:.0f}", blind),
        }
        kinds = [(policy, name) for policy in POLICIES for name in predictors]
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {kind: [] for kind in kinds}
        for number, kind in enumerate(tqdm(kinds * options.repeats, file=sys.stderr)):
            policy, name = kind
            predictor, workload = predictors[name]
            flags = [f"--policy={policy}", f"--predictor={predictor}"]
            flags += [f"--kv-cache-memory-bytes={KV_BYTES}", "--max-num-queued-reqs=100000"]
            folder = root / str(number)
            try:
                load = [f"--workload=jsonl:{workload}"]
                runs[kind].append(measure(DEMO_MODEL, NUM_STAGES, flags, load, folder))
            except (OSError, subprocess.SubprocessError) as error:
                print(f"error: {kind}: {error}\n{log_of(folder)}", file=sys.stderr)
                return 1
    print(_table(runs))
    return 0


def _write_workloads(folder: Path, count: int) -> tuple[Path, Path, float]:
    """Write the prompts without and with real answer lengths; return paths and mean length."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from demo.answer_lengths import output_lens
    from demo.tasks import held_out

    drawn = held_out(DRAWN * count, 0)
    longest = sorted(drawn, key=lambda task: len(task.answer), reverse=True)[: count // 2]
    rest = [task for task in drawn if task not in longest][: count - len(longest)]
    tasks = longest + rest
    random.Random(0).shuffle(tasks)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.bfloat16).eval()
    lens = output_lens(model, AutoTokenizer.from_pretrained(DEMO_MODEL), tasks)
    blind = [Request(task.prompt, MAX_TOKENS) for task in tasks]
    with_lengths = [replace(r, expected_tokens=n) for r, n in zip(blind, lens, strict=True)]
    paths = []
    for name, requests in (("blind", blind), ("with_lengths", with_lengths)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(to_line(request) + "\n" for request in requests))
        paths.append(path)
    return paths[0], paths[1], fmean(lens)


def _table(runs: Mapping[tuple[str, str], list[dict[str, Any]]]) -> str:
    lines = [
        "| policy | predictions | output tokens/s | preemptions | fed again, tokens |",
        "|---|---|--:|--:|--:|",
    ]
    for (policy, name), reports in runs.items():
        rates = sorted(report["summary"]["output_tokens_per_s"] for report in reports)
        daemons = [report["daemon"] for report in reports]
        lines.append(
            f"| {policy} | {name} | {median(rates):,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f}) "
            f"| {median(d['preemptions'] for d in daemons):,.0f} "
            f"| {median(d['recomputed_tokens'] for d in daemons):,.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
