"""The paper's tables, in the wind tunnel: `make paper`, or `python -m benchmarks.paper`.

ShareGPT-like requests, all there at the start, on four GPUs: every policy, what each part of
td-pipe and of temporal is worth, and tensor parallelism as a model. With the profiles published
beside TD-Pipe's code (`--profiles FOLDER`, default ../shared/profiles) where they are, otherwise
with those of the analytic GPU model. Prints Markdown.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.gpu_model import KV_READ_EFFICIENCY, profile_of
from benchmarks.hardware import Hardware
from benchmarks.model_shape import read_shape
from benchmarks.simulate import make_arrivals, summarise
from benchmarks.workloads import make_workload
from configs.gpus import find_gpu
from configs.profiles import read_profile
from configs.schema import EngineConfig
from engine.simulation import simulate

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
    "a margin of one deviation": {"kv_margin": 1},
    "first come, first served": {"longest_first": False},
    "no forecast": {"forecast": False},
    "end game merged to 64 rows": {"merge_rows": 64},
}


@dataclass(frozen=True, slots=True)
class Setup:
    """One of the paper's nodes: four GPUs, a model, and the KV tokens that fit beside it."""

    name: str
    gpu: str
    model: str
    measured: str
    kv_tokens: int


SETUPS = (
    Setup("L20 + 13B", "L20", "llama2-13b", "L20-Llama-13B.csv", 170_000),
    Setup("L20 + 32B", "L20", "qwen2.5-32b", "L20-Qwen2.5-32B.csv", 400_000),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=5000, help="[5000]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--prediction-sigma", type=float, default=0.5, help="[0.5]")
    parser.add_argument("--profiles", type=Path, default=PROFILES, help=f"[{PROFILES}]")
    options = parser.parse_args(argv)
    for table in _tables(options):
        print(table, flush=True)
    return 0


def _tables(options: argparse.Namespace) -> Iterator[str]:
    requests = make_workload(f"sharegpt:{options.requests}", seed=options.seed)
    arrivals = make_arrivals(requests, options.prediction_sigma, options.seed)
    for setup in SETUPS:
        hardware, source = hardware_of_setup(setup, options.profiles)

        def run(settings: Settings, hardware: Hardware = hardware, stages: int = NUM_GPUS) -> Any:
            config = EngineConfig.model_validate(
                {"pipeline_parallel_size": stages, "max_num_seqs": 4096, **settings}
            )
            node = hardware.node(stages, config.block_size, MAX_MODEL_LEN)
            return summarise(simulate(config, node, arrivals))

        yield f"\n### {setup.name}, {options.requests:,} requests ({source})\n"
        by_policy = {name: run(settings) for name, settings in _progress(POLICIES)}
        tensor = {
            "TP + separate": {"policy": "separate"},
            "TP + hybrid": {"policy": "hybrid", "hybrid": "vllm"},
        }
        shared = _tensor_parallel(hardware, setup)
        by_policy |= {name: run(s, shared, 1) for name, s in _progress(tensor)}
        yield _table(by_policy, "td-pipe")
        yield "\nParts of td-pipe\n"
        parts = {name: run({"policy": "td-pipe", **s}) for name, s in _progress(TD_PIPE_ABLATIONS)}
        yield _table({"td-pipe": by_policy["td-pipe"], **parts}, "td-pipe")
        yield "\nParts of temporal\n"
        parts = {
            name: run({"policy": "temporal", **s}) for name, s in _progress(TEMPORAL_ABLATIONS)
        }
        yield _table({"temporal": by_policy["temporal"], **parts}, "temporal")
        half = run({"policy": "td-pipe"}, _half(hardware, setup), NUM_GPUS // 2)
        ratio = by_policy["td-pipe"]["output_tokens_per_s"] / half["output_tokens_per_s"]
        yield f"\ntd-pipe, 2 -> 4 GPUs: {ratio:.2f}x\n"


def hardware_of_setup(setup: Setup, folder: Path) -> tuple[Hardware, str]:
    gpu, shape = find_gpu(setup.gpu), read_shape(setup.model)
    path = folder / setup.measured
    if path.is_file():
        bandwidth, source = gpu.bytes_per_s, f"profile {setup.measured}"
        profile = read_profile(path)
    else:
        bandwidth, source = gpu.bytes_per_s * KV_READ_EFFICIENCY, "analytic GPU model"
        profile = profile_of(gpu, shape)
    return Hardware(profile, setup.kv_tokens, shape.kv_bytes_per_token, bandwidth), source


def _tensor_parallel(hardware: Hardware, setup: Setup) -> Hardware:
    shape = read_shape(setup.model)
    return Hardware(
        hardware.profile,
        hardware.kv_tokens,
        hardware.kv_bytes_per_token,
        hardware.memory_bytes_per_s,
        tensor_parallel=NUM_GPUS,
        allreduce_bytes_per_token=2.0 * shape.num_layers * shape.hidden_size * 2,
    )


def _half(hardware: Hardware, setup: Setup) -> Hardware:
    """Two GPUs: the weights take as much as on four, so less than half of the KV is left."""
    shape = read_shape(setup.model)
    weights = shape.weight_bytes / hardware.kv_bytes_per_token
    kv_tokens = int((hardware.kv_tokens + weights) / 2 - weights)
    return Hardware(
        hardware.profile, kv_tokens, hardware.kv_bytes_per_token, hardware.memory_bytes_per_s
    )


def _progress(settings: Mapping[str, Settings]) -> Iterator[tuple[str, Settings]]:
    yield from tqdm(settings.items(), leave=False, file=sys.stderr)


def _table(figures: Mapping[str, Any], reference: str) -> str:
    base = figures[reference]["output_tokens_per_s"]
    lines = [
        f"| | output tokens/s | over {reference} | bubble | before the drain "
        "| switches | pre-emptions | TTFT p50, s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, run in figures.items():
        bubble, before = max(run["bubble_ratio"]), max(run["bubble_ratio_before_drain"])
        rate = run["output_tokens_per_s"]
        lines.append(
            f"| {name} | {rate:,.0f} | {rate / base:.3f} | {bubble:.1%} | {before:.1%} "
            f"| {run['switches']:,} | {run['preemptions']:,} | {run['ttft_s']['p50']:.1f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
