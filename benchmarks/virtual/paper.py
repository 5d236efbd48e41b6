"""The paper's tables, in the simulator: `make paper`, or `python -m benchmarks.virtual.paper`.

Simulates ShareGPT-like requests, all present at the start, on the paper's nodes of four GPUs. Each
node gets a table of every policy and of tensor parallelism, which is simulated as one stage. The
nodes with a measured profile also get tables that show the effect of each part of td-pipe and of
temporal. *Of the bound* is the part of the makespan that any schedule needs on the row's hardware
(`simulator/bound.py`). Measured profiles are those published with TD-Pipe's code
(`--profiles FOLDER`, default ../shared/profiles); the other nodes use the analytic GPU model.
Prints Markdown; `--write` puts it into docs/scheduling.md, with a chart of the rates.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.config import EngineConfig
from configs.profiles import read_profile
from simulator.arrival import Arrival
from simulator.bound import Bound, bound_of
from simulator.command import make_arrivals, share_of, summarise
from simulator.hardware.gpu_model import KV_READ_EFFICIENCY, kv_capacity_tokens, profile_of
from simulator.hardware.gpus import find_gpu
from simulator.hardware.hardware import Hardware
from simulator.hardware.model_shape import read_shape
from simulator.pipeline import Node
from simulator.simulation import simulate
from simulator.workloads.make_workload import make_workload

PROFILES = Path("../shared/profiles")
MAX_MODEL_LEN = 2048
NUM_GPUS = 4

Settings = Mapping[str, Any]

POLICIES: dict[str, Settings] = {
    "separate (PP+SB)": {"policy": "separate"},
    "hybrid vllm (PP+HB)": {"policy": "hybrid", "hybrid": "vllm"},
    "hybrid throttled": {"policy": "hybrid"},
    "hybrid throttled, 512 tokens": {
        "policy": "hybrid",
        "throttle_max_tokens": 512,
        "throttle_iterations": 16,
    },
    "hybrid throttled, 256 tokens": {
        "policy": "hybrid",
        "throttle_max_tokens": 256,
        "throttle_iterations": 16,
    },
    "td-pipe": {"policy": "td-pipe"},
    "temporal": {"policy": "temporal"},
}
TD_PIPE_ABLATIONS: dict[str, Settings] = {
    "no work stealing": {"work_stealing": False},
    "prefill to 70 % of KV": {"greedy_prefill": False, "prefill_occupancy": 0.7},
    "prefill to 80 % of KV": {"greedy_prefill": False, "prefill_occupancy": 0.8},
    "prefill to 90 % of KV": {"greedy_prefill": False, "prefill_occupancy": 0.9},
    "switch at 20 % finished": {"intensity": False, "finish_ratio": 0.2},
    "switch at 50 % finished": {"intensity": False, "finish_ratio": 0.5},
    "switch at 80 % finished": {"intensity": False, "finish_ratio": 0.8},
    "prefills do not run ahead": {"prefill_ahead": 1},
}
TEMPORAL_ABLATIONS: dict[str, Settings] = {
    "no top-up": {"topup": False},
    "rows balanced, not seconds": {"balance_time": False},
    "refill at once": {"lazy_refill": False},
    "point predictions for KV": {"survival": False},
    "KV planned to the end": {"horizon": 0},
    "first come, first served": {"longest_first": False},
    "no forecast": {"forecast": False},
}


ABLATIONS = {"td-pipe": TD_PIPE_ABLATIONS, "temporal": TEMPORAL_ABLATIONS}
HALF = "td-pipe on half of the GPUs"


@dataclass(frozen=True, slots=True)
class Setup:
    """One of the paper's nodes: four GPUs, a model, and the KV tokens that fit beside it.

    `measured` is the file of the published profile, if there is one. If `kv_tokens` is None, it is
    computed by the GPU model. `allreduce_bytes_per_s` is the bandwidth that the paper measured
    between the GPUs.
    """

    name: str
    gpu: str
    model: str
    measured: str | None = None
    kv_tokens: int | None = None
    allreduce_bytes_per_s: float = 14.65e9


SETUPS = (
    Setup("L20 + 13B", "L20", "llama2-13b", "L20-Llama-13B.csv", 170_000),
    Setup("L20 + 32B", "L20", "qwen2.5-32b", "L20-Qwen2.5-32B.csv", 400_000),
)
"""The nodes with a published profile."""

MODELLED = (
    Setup("L20 + 13B, our GPU model", "L20", "llama2-13b", kv_tokens=170_000),
    Setup("L20 + 32B, our GPU model", "L20", "qwen2.5-32b", kv_tokens=400_000),
    Setup("A100 + 32B, our GPU model", "A100-80G-PCIe", "qwen2.5-32b", None, None, 14.82e9),
    Setup("A100 + 70B, our GPU model", "A100-80G-PCIe", "llama2-70b", None, None, 14.82e9),
)
"""All four nodes of the paper, from the GPU model only."""

TENSOR_PARALLEL: dict[str, Settings] = {
    "TP + separate": {"policy": "separate"},
    "TP + hybrid": {"policy": "hybrid", "hybrid": "vllm"},
}
PAPER_SAYS = {
    "TP + separate": 1.91,
    "TP + hybrid": 1.90,
    "separate (PP+SB)": 2.73,
    "hybrid vllm (PP+HB)": 2.21,
}
"""The paper's largest speed-up of TD-Pipe over each baseline on its four nodes (section 4.2)."""

DOCUMENT, CHART = Path("docs/scheduling.md"), Path("docs/paper.svg")
BEGIN, END = "<!-- make paper: begin -->", "<!-- make paper: end -->"


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.virtual.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=5000, help="[5000]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--prediction-sigma", type=float, default=0.5, help="[0.5]")
    parser.add_argument("--profiles", type=Path, default=PROFILES, help=f"[{PROFILES}]")
    parser.add_argument("--write", action="store_true", help=f"into {DOCUMENT} and {CHART}")
    options = parser.parse_args(argv)
    nodes = [PaperNode(setup, options) for setup in (*SETUPS, *MODELLED)]
    jobs = [(node, name) for node in nodes for name in node.runs()]
    with ProcessPoolExecutor(mp_context=get_context("fork")) as processes:
        runs = processes.map(_run, *zip(*jobs, strict=True))
        for (node, name), run in zip(
            jobs, tqdm(runs, total=len(jobs), file=sys.stderr), strict=True
        ):
            node.results[name] = run
    text = "\n".join(line for node in nodes for line in node.section()) + "\n" + _beside(nodes)
    print(text)
    if options.write:
        draw({node.setup.name: node.rates() for node in nodes}, CHART)
        document = DOCUMENT.read_text()
        before, after = document.split(BEGIN)[0], document.split(END)[1]
        DOCUMENT.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0


class PaperNode:
    """One set-up, everything that is simulated on it, and the results."""

    def __init__(self, setup: Setup, options: argparse.Namespace) -> None:
        self.setup = setup
        self.hardware, self.source = hardware_of_setup(setup, options.profiles)
        self.options = options
        self.results: dict[str, Any] = {}

    def runs(self) -> dict[str, tuple[Settings, Hardware, int]]:
        """By name: the settings, the hardware and the stages."""
        runs = {name: (settings, self.hardware, NUM_GPUS) for name, settings in POLICIES.items()}
        shared = _tensor_parallel(self.hardware, self.setup)
        runs |= {name: (settings, shared, 1) for name, settings in TENSOR_PARALLEL.items()}
        if self.setup in SETUPS:
            for policy, parts in ABLATIONS.items():
                for name, changes in parts.items():
                    runs[name] = ({"policy": policy, **changes}, self.hardware, NUM_GPUS)
            half = _half(self.hardware, self.setup)
            runs[HALF] = ({"policy": "td-pipe"}, half, NUM_GPUS // 2)
        return runs

    def rates(self) -> dict[str, float]:
        """Output tokens/s of each policy."""
        names = [*POLICIES, *TENSOR_PARALLEL]
        return {name: self.results[name]["output_tokens_per_s"] for name in names}

    def section(self) -> Iterator[str]:
        """The node's section of the text."""
        yield f"\n### {self.setup.name}, {self.options.requests:,} requests ({self.source})\n"
        bound = self.results["temporal"]
        yield f"Bound: {bound['bound_s']:,.1f} s, set by {bound['bound_set_by']}.\n"
        yield _table({name: self.results[name] for name in self.rates()}, "td-pipe")
        if self.setup not in SETUPS:
            return
        for policy, parts in ABLATIONS.items():
            yield f"\nParts of {policy}\n"
            yield _table({name: self.results[name] for name in (policy, *parts)}, policy)
        whole, half = self.rates()["td-pipe"], self.results[HALF]["output_tokens_per_s"]
        yield f"\ntd-pipe, 2 -> 4 GPUs: {whole / half:.2f}x\n"


def _run(node: PaperNode, name: str) -> dict[str, Any]:
    settings, hardware, num_stages = node.runs()[name]
    options = node.options
    config = EngineConfig.of(
        **{"pipeline_parallel_size": num_stages, "max_num_seqs": 4096, **settings}
    )
    arrivals = _arrivals(options.requests, options.prediction_sigma, options.seed)
    stages = hardware.node(num_stages, config.cache.block_size, MAX_MODEL_LEN)
    run = simulate(config, stages, arrivals)
    bound = _bound(stages, config.cache.block_size, options.requests, options.seed)
    return {**summarise(run), **share_of(bound, run)}


def _arrivals(num_requests: int, sigma: float, seed: int) -> list[Arrival]:
    return make_arrivals(make_workload(f"sharegpt:{num_requests}", seed=seed), sigma, seed)


@cache
def _bound(stages: Node, block_size: int, num_requests: int, seed: int) -> Bound:
    """The bound of a node; it does not depend on the policy or the predictions."""
    return bound_of(stages, block_size, _arrivals(num_requests, 0.0, seed))


def _beside(nodes: Sequence[PaperNode]) -> str:
    """The table of our speed-ups and the paper's."""
    lines = [
        "\n### Beside the paper\n",
        "| td-pipe over | paper, best of four | "
        + " | ".join(node.setup.name for node in nodes)
        + " |",
        "|---|--:|" + "--:|" * len(nodes),
    ]
    for name, ratio in PAPER_SAYS.items():
        ours = [f"{node.rates()['td-pipe'] / node.rates()[name]:.2f}" for node in nodes]
        lines.append(f"| {name} | {ratio:.2f} | {' | '.join(ours)} |")
    return "\n".join(lines)


def draw(rates: Mapping[str, Mapping[str, float]], path: Path) -> None:
    """A group of bars for each node: output tokens/s of each policy over td-pipe's."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "tdpipe"  # the same chart is the same file
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(12, 4.5), layout="constrained")
    names = list(next(iter(rates.values())))
    width = 0.8 / len(names)
    colours = plt.get_cmap("tab10")
    for i, name in enumerate(names):
        places = [number + i * width for number in range(len(rates))]
        heights = [by_name[name] / by_name["td-pipe"] for by_name in rates.values()]
        axes.bar(places, heights, width, label=name, color=colours(i), align="edge")
    axes.axhline(1, color="black", linewidth=0.5)
    axes.set_xticks([number + 0.4 for number in range(len(rates))], list(rates), fontsize="small")
    axes.set_ylabel("output tokens/s over td-pipe's")
    axes.legend(ncols=3, fontsize="small")
    axes.set_ylim(0, 2)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def hardware_of_setup(setup: Setup, folder: Path) -> tuple[Hardware, str]:
    """The node, and the source of its figures: a profile in `folder`, or the GPU model.

    Says on standard error if a profile is missing, because the figures are then others.
    """
    gpu, shape = find_gpu(setup.gpu), read_shape(setup.model)
    kv_tokens = setup.kv_tokens or kv_capacity_tokens(gpu, shape, NUM_GPUS)
    if setup.measured is not None and (path := folder / setup.measured).is_file():
        profile, bandwidth = read_profile(path), gpu.bytes_per_s
        source = f"profile {setup.measured}"
    else:
        if setup.measured is not None:
            name = setup.name
            print(
                f"{name}: our GPU model, for there is no {folder / setup.measured}", file=sys.stderr
            )
        profile, bandwidth = profile_of(gpu, shape), gpu.bytes_per_s * KV_READ_EFFICIENCY
        source = "analytic GPU model"
    hardware = Hardware(
        profile,
        kv_tokens,
        shape.kv_bytes_per_token,
        bandwidth,
        allreduce_bytes_per_s=setup.allreduce_bytes_per_s,
    )
    return hardware, source


def _tensor_parallel(hardware: Hardware, setup: Setup) -> Hardware:
    shape = read_shape(setup.model)
    exchanged = 2.0 * shape.num_layers * shape.hidden_size * 2
    return replace(hardware, tensor_parallel=NUM_GPUS, allreduce_bytes_per_token=exchanged)


def _half(hardware: Hardware, setup: Setup) -> Hardware:
    """Two GPUs: the weights take as much as on four, so less than half of the KV cache is left."""
    shape = read_shape(setup.model)
    weights = shape.weight_bytes / hardware.kv_bytes_per_token
    kv_tokens = int((hardware.kv_tokens + weights) / 2 - weights)
    return replace(hardware, kv_tokens=kv_tokens)


def _table(figures: Mapping[str, Any], reference: str) -> str:
    base = figures[reference]["output_tokens_per_s"]
    lines = [
        f"| | output tokens/s | relative to {reference} | of the bound | bubble "
        "| before the drain | switches | preemptions | TTFT p50, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, run in figures.items():
        bubble, before = max(run["bubble_ratio"]), max(run["bubble_ratio_before_drain"])
        rate = run["output_tokens_per_s"]
        lines.append(
            f"| {name} | {rate:,.0f} | {rate / base:.3f} | {run['share_of_bound']:.3f} "
            f"| {bubble:.1%} | {before:.1%} | {run['switches']:,} | {run['preemptions']:,} "
            f"| {run['ttft_s']['p50']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
