"""The effect of length predictions, in the simulator: `make prediction-quality`.

Four GPUs of the paper (L20, 13B), all requests present at the start, td-pipe and temporal, with
output lengths predicted in different ways:

  ShareGPT-like   the real lengths (oracle); a class predictor as accurate as the paper's; the real
                  lengths with a log-normal error of sigma 0.5; one constant
  demo            held-out prompts of the demo model and the lengths of its answers, both scaled to
                  ShareGPT's; the same predictions, but with the demo's trained encoder, which reads
                  the prompts, instead of the class predictor

Prints Markdown; `--write` puts it into docs/scheduling.md, with a chart.
"""

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import compress
from math import exp
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.virtual.paper import (
    DOCUMENT,
    MAX_MODEL_LEN,
    NUM_GPUS,
    PROFILES,
    SETUPS,
    hardware_of_setup,
)
from configs.config import EngineConfig
from configs.schema.model import DEMO_MODEL
from predictor.classes import LengthClasses
from simulator.arrival import Arrival
from simulator.command import summarise
from simulator.simulation import simulate
from simulator.workloads.make_workload import make_workload

CHART = Path("docs/prediction_quality.svg")
BEGIN = "<!-- make prediction-quality: begin -->"
END = "<!-- make prediction-quality: end -->"
POLICIES = ("td-pipe", "temporal")
SIGMA, ACCURACY = 0.5, 0.55
"""Sigma of the errors of the noisy predictions, and accuracy of the class predictor.

The paper's predictor has an accuracy of 0.52 to 0.58.
"""
DEMO_PREDICTOR = DEMO_MODEL.parent / "predictor"
# The demo model's prompts and answers are short: ShareGPT's are about this many times as long.
STRETCH_PROMPTS, STRETCH_ANSWERS = 10, 6
BATCH = 64


@dataclass(frozen=True, slots=True)
class Work:
    """Requests, with several predictions of each one's output length, as (mean, spread)."""

    name: str
    prompt_lens: list[int]
    output_lens: list[int]
    predictions: Mapping[str, Sequence[tuple[int, float]]]

    def fitting(self, max_model_len: int) -> "Work":
        """Without the requests that are longer than that."""
        totals = map(int.__add__, self.prompt_lens, self.output_lens)
        fits = [total <= max_model_len for total in totals]
        return Work(
            self.name,
            list(compress(self.prompt_lens, fits)),
            list(compress(self.output_lens, fits)),
            {
                name: list(compress(prediction, fits))
                for name, prediction in self.predictions.items()
            },
        )

    def arrivals(self, prediction: str) -> list[Arrival]:
        """The requests with one kind of predictions."""
        rows = zip(self.prompt_lens, self.output_lens, self.predictions[prediction], strict=True)
        return [
            Arrival(0.0, prompt, output, predicted_len, spread=spread)
            for prompt, output, (predicted_len, spread) in rows
        ]


def oracle(output_lens: Sequence[int]) -> list[tuple[int, float]]:
    """The real lengths."""
    return [(length, 0.0) for length in output_lens]


def noisy(output_lens: Sequence[int], rng: random.Random) -> list[tuple[int, float]]:
    """Real lengths times e to a normal error; the spread is not reported."""
    return [(max(1, round(n * exp(SIGMA * rng.gauss(0, 1)))), 0.0) for n in output_lens]


def constant(output_lens: Sequence[int]) -> list[tuple[int, float]]:
    """No prediction: the scheduler has its own guess."""
    return [(0, 0.0)] * len(output_lens)


def by_class(
    output_lens: Sequence[int], rng: random.Random, accuracy: float = ACCURACY
) -> list[tuple[int, float]]:
    """A predictor of the paper's five classes that is right this often, else one class off.

    It knows the real distribution of the answers in each predicted class.
    """
    classes = LengthClasses.fit(output_lens)
    guessed = []
    for own in classes.of(output_lens).tolist():
        beside = [k for k in (own - 1, own + 1) if 0 <= k < len(classes)]
        guessed.append(own if rng.random() < accuracy else rng.choice(beside))
    lens, chosen = np.array(output_lens, dtype=float), np.array(guessed)
    of_class = {}
    for k in set(guessed):
        members = lens[chosen == k]
        of_class[k] = (
            max(1, round(float(members.mean()))),
            max(0.01, float(np.log(members).std())),
        )
    return [of_class[k] for k in guessed]


def sharegpt(count: int, seed: int) -> Work:
    """Lengths like ShareGPT's."""
    requests = make_workload(f"sharegpt:{count}", seed=seed)
    output_lens = [request.max_tokens for request in requests]
    rng = random.Random(f"predictions {seed}")
    predictions = {
        "oracle": oracle(output_lens),
        "5 classes, 55 % right": by_class(output_lens, rng),
        "sigma 0.5": noisy(output_lens, rng),
        "constant": constant(output_lens),
    }
    return Work("ShareGPT-like", [len(r.prompt) for r in requests], output_lens, predictions)


def demo(count: int, seed: int) -> Work:
    """Held-out prompts of the demo model, with the lengths of its answers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from demo.answer_lengths import output_lens as lens_of_answers
    from demo.tasks import held_out
    from predictor.checkpoint import load_predictor

    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype=torch.bfloat16).eval()
    tasks = held_out(count, seed)
    prompts = [task.prompt for task in tasks]
    prompt_lens = [STRETCH_PROMPTS * len(ids) for ids in tokenizer(prompts).input_ids]
    output_lens = [STRETCH_ANSWERS * n for n in lens_of_answers(model, tokenizer, tasks)]
    encoder = load_predictor(DEMO_PREDICTOR)
    answers = [
        prediction
        for start in range(0, count, BATCH)
        for prediction in encoder.predict(prompts[start : start + BATCH])
    ]
    trained = [
        (max(1, STRETCH_ANSWERS * answer.predicted_len), max(0.01, answer.spread))
        for answer in answers
    ]
    rng = random.Random(f"predictions {seed}")
    predictions = {
        "oracle": oracle(output_lens),
        "trained encoder": trained,
        "sigma 0.5": noisy(output_lens, rng),
        "constant": constant(output_lens),
    }
    return Work("demo, stretched", prompt_lens, output_lens, predictions).fitting(MAX_MODEL_LEN)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.prediction_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=5000, help="[5000]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--profiles", type=Path, default=PROFILES, help=f"[{PROFILES}]")
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT} and {CHART}")
    options = parser.parse_args(argv)
    works = [make(options.requests, options.seed) for make in (sharegpt, demo)]
    jobs = [
        (work, policy, prediction)
        for work in works
        for policy in POLICIES
        for prediction in work.predictions
    ]
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        runs = processes.map(_run, *zip(*jobs, strict=True), [options.profiles] * len(jobs))
        results = list(tqdm(runs, total=len(jobs), file=sys.stderr))
    figures = {
        (work.name, policy, prediction): run
        for (work, policy, prediction), run in zip(jobs, results, strict=True)
    }
    text = _table(works, figures)
    print(text)
    if options.write:
        draw(works, figures, CHART)
        document = DOCUMENT.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0


Figures = Mapping[tuple[str, str, str], dict[str, Any]]


def _run(work: Work, policy: str, prediction: str, profiles: Path) -> dict[str, Any]:
    config = EngineConfig.of(pipeline_parallel_size=NUM_GPUS, max_num_seqs=4096, policy=policy)
    hardware, _ = hardware_of_setup(SETUPS[0], profiles)
    node = hardware.node(NUM_GPUS, config.cache.block_size, MAX_MODEL_LEN)
    return summarise(simulate(config, node, work.arrivals(prediction)))


def _table(works: Sequence[Work], figures: Figures) -> str:
    lines = [
        "| requests | predictions | td-pipe, tokens/s | of its oracle | preemptions "
        "| temporal, tokens/s | of its oracle | preemptions |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for work in works:
        for prediction in work.predictions:
            cells = []
            for policy in POLICIES:
                run = figures[work.name, policy, prediction]
                rate = run["output_tokens_per_s"]
                best = figures[work.name, policy, "oracle"]["output_tokens_per_s"]
                cells.append(f"{rate:,.0f} | {rate / best:.3f} | {run['preemptions']:,}")
            lines.append(f"| {work.name} | {prediction} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(works: Sequence[Work], figures: Figures, path: Path) -> None:
    """For each kind of requests a group of bars per policy: output tokens/s."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "tdpipe"  # the same chart is the same file
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(works), figsize=(11, 4), layout="constrained")
    for axes, work in zip(panels, works, strict=True):
        width = 0.8 / len(work.predictions)
        for i, prediction in enumerate(work.predictions):
            heights = [figures[work.name, p, prediction]["output_tokens_per_s"] for p in POLICIES]
            places = [number + i * width for number in range(len(POLICIES))]
            bars = axes.bar(places, heights, width, label=prediction, align="edge")
            axes.bar_label(bars, fmt="{:,.0f}", fontsize="x-small")
        axes.set_xticks([number + 0.4 for number in range(len(POLICIES))], POLICIES)
        axes.set_ylabel("output tokens/s")
        axes.set_title(f"{work.name}, {len(work.output_lens):,} requests", fontsize="medium")
        axes.legend(fontsize="small", loc="upper left")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
