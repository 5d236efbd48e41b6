"""The policies on real processes and in the simulator: `make real-policies`.

Two CPU stages of a random Llama of about 120 M parameters in bf16, one thread each, serve 200
requests of ShareGPT-like lengths at a quarter of their size, all at once: with a KV cache that is
small enough to matter (tight), and with one that holds all requests (ample). The policies run in
turn, and the figures are medians over the repeats. The simulator gets the costs that the stages
measured at their start and the same requests. Prints Markdown.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from benchmarks.daemon_run import log_of, measure
from configs.config import EngineConfig
from configs.schema.model import DEMO_MODEL
from engine.trace.journal import entries
from simulator.arrival import Arrival
from simulator.command import summarise
from simulator.pipeline import Node
from simulator.simulation import simulate
from simulator.workloads.make_workload import make_workload
from wire.messages import StageCosts, StageReady

Runs = dict[tuple[str, str], list[dict[str, Any]]]
"""Reports by the size of the KV cache and the policy."""

POLICIES: dict[str, Mapping[str, str | bool]] = {
    "separate": {"policy": "separate"},
    "hybrid vllm": {"policy": "hybrid", "hybrid": "vllm"},
    "hybrid throttled": {"policy": "hybrid", "hybrid": "throttled"},
    "td-pipe": {"policy": "td-pipe"},
    "temporal": {"policy": "temporal"},
    "temporal, asynchronous": {"policy": "temporal", "async_scheduling": True},
}
NUM_STAGES = 2
KV_BYTES = {"tight": 26_000_000, "ample": 260_000_000}
WORKLOAD, SCALE = "sharegpt:200", 0.25


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a daemon or a load failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_policies", description=__doc__)
    parser.add_argument("--rounds", dest="repeats", type=int, default=3, help="[3]")
    add = parser.add_argument
    add("--kv", nargs="+", choices=KV_BYTES, default=[*KV_BYTES], help="sizes of the KV cache")
    add("--policies", nargs="+", choices=POLICIES, default=[*POLICIES])
    options = parser.parse_args(argv)
    cases = [(kv, name) for kv in options.kv for name in options.policies]
    runs: Runs = {case: [] for case in cases}
    simulated: Runs = {case: [] for case in cases}
    with tempfile.TemporaryDirectory(prefix="tdpipe-policies-") as temporary:
        model = make_random_llama(Path(temporary) / "llama")
        turns = [case for _ in range(options.repeats) for case in cases]
        for number, (kv, name) in enumerate(tqdm(turns, file=sys.stderr)):
            folder = Path(temporary) / str(number)
            try:
                flags = [*_flags(POLICIES[name]), f"--kv-cache-memory-bytes={KV_BYTES[kv]}"]
                # One data folder for all: the kernels are compiled and the steps measured once.
                flags += [f"--journal={folder / 'journal'}", f"--data-dir={folder.parent / 'data'}"]
                load = [f"--workload={WORKLOAD}", f"--scale={SCALE}"]
                runs[kv, name].append(measure(model, NUM_STAGES, flags, load, folder))
            except (OSError, subprocess.SubprocessError) as error:
                print(f"error: {name}: {error}\n{log_of(folder)}", file=sys.stderr)
                return 1
            simulated[kv, name].append(simulate_beside(POLICIES[name], folder / "journal"))
    print(_table(runs, simulated))
    return 0


def _flags(settings: Mapping[str, str | bool]) -> Iterator[str]:
    """The settings as flags of `tdpipe serve`."""
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        yield flag if value is True else f"{flag}={value}"


def make_random_llama(folder: Path, num_layers: int = 18) -> Path:
    """Create a Llama with random weights, by default 120 M, and the demo model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=768,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=num_layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for path in DEMO_MODEL.glob("tokenizer*"):
        shutil.copy(path, folder)
    return folder


def simulate_beside(settings: Mapping[str, str | bool], journal: Path) -> dict[str, Any]:
    """Simulate the same requests with the costs that the real stages reported."""
    config = EngineConfig.of(**{"pipeline_parallel_size": NUM_STAGES, **settings})
    ready = [e.event for e in entries(journal) if isinstance(e.event, StageReady)]
    costs: tuple[StageCosts, ...] = tuple(stage.costs for stage in ready)
    node = Node(costs, min(stage.num_blocks for stage in ready), 2048)
    arrivals = [
        Arrival(
            0.0,
            len(request.prompt),
            request.max_tokens,
            min(request.max_tokens, config.scheduler.predicted_output_len),
            offline=False,
        )
        for request in make_workload(WORKLOAD, scale=SCALE)
    ]
    return summarise(simulate(config, node, arrivals))


def _table(runs: Runs, simulated: Runs) -> str:
    lines = [
        "| KV cache | policy | output tokens/s | bubble, stage 0 / 1 | switches | preemptions "
        "| simulated tokens/s | bubble, stage 0 / 1 |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (kv, name), reports in runs.items():
        rates = sorted(report["summary"]["output_tokens_per_s"] for report in reports)
        daemons = [report["daemon"] for report in reports]
        bubbles = [median(d["stages"][s]["bubble_ratio"] for d in daemons) for s in (0, 1)]
        beside = simulated[kv, name]
        lines.append(
            f"| {kv} | {name} | {median(rates):,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f}) "
            f"| {bubbles[0]:.1%} / {bubbles[1]:.1%} "
            f"| {median(d['phase_switches'] for d in daemons):,.0f} "
            f"| {median(d['preemptions'] for d in daemons):,.0f} "
            f"| {median(run['output_tokens_per_s'] for run in beside):,.0f} "
            f"| {median(run['bubble_ratio'][0] for run in beside):.1%} "
            f"/ {median(run['bubble_ratio'][1] for run in beside):.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
