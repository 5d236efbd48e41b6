"""The wind tunnel: `tdpipe simulate`, the production scheduler in virtual time.

The stages are a profile (seconds over tokens of the whole model on one GPU) cut into S, with the KV
that a step reads on top. Any setting of `tdpipe serve` that decides may be given, `--policy` first.
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.request import Request, WorkloadError
from benchmarks.summary import spread
from benchmarks.timeline import draw
from benchmarks.workloads import KINDS, add_workload_options, positive, workload_of
from configs.loader import ConfigError, load
from configs.profiles import Profile, ProfileError, read_profile
from configs.schema import EngineConfig
from engine.messages import StageCosts
from engine.scheduler import ImpossibleSettingsError
from engine.simulation import Arrival, Node, Run, SimulationError, simulate
from engine.trace import TraceWriter


@dataclass(frozen=True, slots=True)
class Hardware:
    """A node of equal GPUs and what a model costs on it.

    `profile` is of the whole model on one GPU. With `tensor_parallel` N each stage is N GPUs that
    share every layer and add up `allreduce_bytes_per_token` at `allreduce_bytes_per_s`.
    """

    profile: Profile
    kv_tokens: int
    kv_bytes_per_token: float
    memory_bytes_per_s: float
    overhead_s: float = 0.0002
    hop_s: float = 0.0001
    tensor_parallel: int = 1
    allreduce_bytes_per_token: float = 0.0
    allreduce_bytes_per_s: float = 14.65e9


def make_node(hardware: Hardware, num_stages: int, block_size: int, max_model_len: int) -> Node:
    """The hardware as S equal stages."""
    num_gpus = num_stages * hardware.tensor_parallel
    allreduce_s = 0.0
    if hardware.tensor_parallel > 1:
        allreduce_s = hardware.allreduce_bytes_per_token / hardware.allreduce_bytes_per_s
    profile = hardware.profile
    costs = StageCosts(
        profile.num_tokens,
        tuple(
            seconds / num_gpus + n * allreduce_s / num_stages
            for n, seconds in zip(profile.num_tokens, profile.seconds, strict=True)
        ),
        hardware.kv_bytes_per_token / (num_gpus * hardware.memory_bytes_per_s),
    )
    num_blocks = hardware.kv_tokens // block_size
    return Node(
        (costs,) * num_stages, num_blocks, max_model_len, hardware.overhead_s, hardware.hop_s
    )


def make_arrivals(requests: Sequence[Request], sigma: float | None, seed: int) -> list[Arrival]:
    """The requests with predicted output lengths: real times e to a normal error of `sigma`.

    0 is an oracle, None predicts nothing. Without arrival times they are offline work. Raises
    `WorkloadError` for prompts whose tokens are not known.
    """
    rng = random.Random(f"predictions {seed}")
    arrivals = []
    for request in requests:
        if isinstance(request.prompt, str):
            raise WorkloadError("a simulation counts tokens: give prompt_token_ids, not text")
        error = rng.gauss(0.0, 1.0)
        predicted_len = 0
        if sigma is not None:
            predicted_len = max(1, round(request.max_tokens * exp(sigma * error)))
        arrivals.append(
            Arrival(
                request.arrival_s or 0.0,
                len(request.prompt),
                request.max_tokens,
                predicted_len,
                offline=request.arrival_s is None,
            )
        )
    return arrivals


def summarise(run: Run) -> dict[str, Any]:
    """The figures of a run as one JSON object."""
    num_output = sum(life.output_len for life in run.lives)
    num_prompt = sum(life.num_prompt_tokens for life in run.lives)
    before_drain = run.drain_began_at
    return {
        "output_tokens_per_s": num_output / run.makespan_s,
        "total_tokens_per_s": (num_output + num_prompt) / run.makespan_s,
        "makespan_s": run.makespan_s,
        "drain_began_s": before_drain,
        "bubble_ratio": [1 - busy / run.makespan_s for busy in run.busy_s],
        "bubble_ratio_before_drain": [
            1 - busy / before_drain if before_drain else 0.0 for busy in run.busy_before_drain_s
        ],
        "ttft_s": spread(life.first_token_at - life.arrived_at for life in run.lives),
        "tpot_s": spread(
            (life.ended_at - life.first_token_at) / (life.output_len - 1)
            for life in run.lives
            if life.output_len > 1
        ),
        "num_requests": len(run.lives),
        "num_output_tokens": num_output,
        "num_prompt_tokens": num_prompt,
        **{
            name: count
            for name, count in asdict(run.counters).items()
            if name in ("switches", "steals", "preemptions", "recomputed_tokens", "steps")
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all requests have ended, 2 for what cannot be simulated."""
    options, rest = _parser().parse_known_args(argv)
    try:
        settings = load([*rest, f"--pipeline-parallel-size={options.stages}"], {})
        config = EngineConfig.model_validate(
            settings.model_dump(include=set(EngineConfig.model_fields))
        )
        hardware = _hardware(options)
        sigma = {"oracle": 0.0, "constant": None, "noisy": options.prediction_sigma}
        arrivals = make_arrivals(workload_of(options), sigma[options.prediction], options.seed)
        node = make_node(hardware, options.stages, config.block_size, config.max_model_len or 2048)
        began_at = perf_counter()
        wants_spans = options.trace is not None or options.timeline is not None
        run = simulate(config, node, arrivals, record=wants_spans)
    except (
        ConfigError,
        ProfileError,
        WorkloadError,
        SimulationError,
        ImpossibleSettingsError,
    ) as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)
        return 2
    figures = {"policy": config.policy, **summarise(run), "took_s": perf_counter() - began_at}
    print(json.dumps(figures) if options.json else _table(figures))
    if options.trace is not None:
        _write_trace(run, options.trace, options.stages)
    if options.timeline is not None:
        title = f"{config.policy}, {options.stages} stages, {options.workload}"
        draw(run.spans, run.gauges, options.timeline, title=title)
    return 0


def _hardware(options: argparse.Namespace) -> Hardware:
    if options.profile is None:
        raise ProfileError("give --profile CSV")
    missing = [
        f"--{name.replace('_', '-')}"
        for name in ("kv_tokens", "kv_bytes_per_token", "memory_bandwidth")
        if getattr(options, name) is None
    ]
    if missing:
        raise ProfileError(f"a profile says nothing of the KV cache: give {', '.join(missing)}")
    return Hardware(
        read_profile(options.profile),
        options.kv_tokens,
        options.kv_bytes_per_token,
        options.memory_bandwidth * 1e9,
        options.overhead_ms / 1000,
        options.hop_ms / 1000,
        options.tensor_parallel,
        options.allreduce_bytes_per_token,
        options.allreduce_bandwidth * 1e9,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tdpipe simulate",
        description="Serve a workload in virtual time with the production scheduler.",
        epilog=KINDS + "\nany setting of `tdpipe serve` that decides may follow, e.g. --policy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_workload_options(parser)
    add = parser.add_argument
    add("--profile", type=Path, help="CSV of `Total Length,Execute Time` (tokens, ms), one GPU")
    add("--stages", type=int, default=4, help="pipeline stages [4]")
    add("--kv-tokens", type=int, help="tokens that the KV cache of the node holds")
    add("--kv-bytes-per-token", type=positive, help="KV bytes of a token over all layers")
    add("--memory-bandwidth", type=positive, help="GB/s of one GPU's memory")
    add("--overhead-ms", type=float, default=0.2, help="what each step adds on a stage [0.2]")
    add("--hop-ms", type=float, default=0.1, help="the way to the next stage [0.1]")
    add("--tensor-parallel", type=int, default=1, help="GPUs in each stage [1]")
    add("--allreduce-bandwidth", type=positive, default=14.65, help="GB/s [14.65, PCIe switch]")
    add("--allreduce-bytes-per-token", type=float, default=0.0, help="2 x layers x hidden x 2")
    add(
        "--prediction",
        choices=("oracle", "noisy", "constant"),
        default="noisy",
        help="output lengths that the scheduler is told [noisy]",
    )
    add("--prediction-sigma", type=float, default=0.5, help="of ln(predicted / real) [0.5]")
    add("--json", action="store_true", help="print one JSON object")
    add("--trace", type=Path, help="write a Chrome/Perfetto trace")
    add("--timeline", type=Path, help="draw the stages' timeline (.png, .svg, .pdf)")
    return parser


def _table(figures: dict[str, Any]) -> str:
    rows = [
        ("output", f"{figures['output_tokens_per_s']:,.1f} tokens/s"),
        ("prompt and output", f"{figures['total_tokens_per_s']:,.1f} tokens/s"),
        ("makespan", f"{figures['makespan_s']:,.1f} s, {figures['num_requests']:,} requests"),
        ("bubble ratio", " ".join(f"{ratio:.3f}" for ratio in figures["bubble_ratio"])),
        (
            "before the drain",
            " ".join(f"{ratio:.3f}" for ratio in figures["bubble_ratio_before_drain"])
            + f" (until {figures['drain_began_s']:,.1f} s)",
        ),
        *((name, f"{figures[name]:,}") for name in ("steps", "switches", "steals", "preemptions")),
        *(
            (name, "  ".join(f"{key} {value:.3f}" for key, value in figures[key_s].items()))
            for name, key_s in (("TTFT, s", "ttft_s"), ("TPOT, s", "tpot_s"))
            if figures[key_s]
        ),
        ("simulated in", f"{figures['took_s']:.1f} s"),
    ]
    lines = [f"{name:20}{value}" for name, value in rows]
    return "\n".join([f"policy              {figures['policy']}", *lines])


def _write_trace(run: Run, path: Path, num_stages: int) -> None:
    with TraceWriter(path, num_stages) as trace:
        for span in run.spans:
            trace.write_span(span)
        for gauges in run.gauges:
            trace.write_gauges(gauges)
