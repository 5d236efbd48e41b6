"""temporal beside every other policy, in many set-ups: `make sweep`.

1, 2, 4 and 8 stages; short, long, mixed, prompt-heavy and answer-heavy lengths; a KV cache that is
tight or ample; predictions from an oracle's to none. Prints a line for each, with the best other
policy and temporal's ratio to it; those where temporal loses more than 2 % are marked.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from tqdm import tqdm

from benchmarks.hardware import Hardware
from benchmarks.paper import (
    MAX_MODEL_LEN,
    POLICIES,
    PROFILES,
    SETUPS,
    Settings,
    hardware_of_setup,
)
from benchmarks.simulate import make_arrivals
from benchmarks.workloads import make_workload
from configs.schema import EngineConfig
from engine.simulation import Arrival, simulate

WORKLOADS = {
    "mixed": "sharegpt:1200",
    "short": "fixed:1500:64:48",
    "long": "fixed:250:900:600",
    "prompts": "fixed:600:1000:24",
    "answers": "fixed:500:32:500",
}
KV_PARTS = {"tight": 0.15, "ample": 1.0}
PREDICTIONS = {"oracle": 0.0, "sigma 0.5": 0.5, "constant": None}
STAGES = (1, 2, 4, 8)
WORST = 0.98
PREDICTING = ("td-pipe", "temporal")


@dataclass(frozen=True, slots=True)
class Case:
    """One set-up: its label, and what of it policies see that ask for no predictions."""

    label: str
    world: str
    hardware: Hardware
    num_stages: int
    arrivals: list[Arrival]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the lines; the exit code is that of a clean run whatever they say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--profiles", type=Path, default=PROFILES, help=f"[{PROFILES}]")
    options = parser.parse_args(argv)
    print("| case | temporal, tokens/s | best other | tokens/s | ratio |\n|---|--:|---|--:|--:|")
    ratios = []
    known: dict[tuple[str, str], float] = {}
    cases = list(_cases(options.profiles))
    for case in tqdm(cases, leave=False, file=sys.stderr):
        rates = {}
        for name, settings in POLICIES.items():
            key = (name, case.label if settings["policy"] in PREDICTING else case.world)
            rates[name] = known[key] = known.get(key) or _rate(case, settings)
        mine = rates.pop("temporal")
        best = max(rates, key=lambda name: rates[name])
        ratios.append(mine / rates[best])
        mark = " **<**" if ratios[-1] < WORST else ""
        print(
            f"| {case.label} | {mine:,.0f} | {best} | {rates[best]:,.0f} "
            f"| {ratios[-1]:.3f}{mark} |",
            flush=True,
        )
    behind = sum(ratio < WORST for ratio in ratios)
    print(
        f"\n{len(ratios)} cases: ratio from {min(ratios):.3f} to {max(ratios):.3f}, "
        f"below {WORST} in {behind}."
    )
    return 0


def _cases(folder: Path) -> Iterator[Case]:
    for setup, num_stages, (kind, workload), (kv, part), (prediction, sigma) in product(
        SETUPS, STAGES, WORKLOADS.items(), KV_PARTS.items(), PREDICTIONS.items()
    ):
        hardware, _ = hardware_of_setup(setup, folder)
        world = f"{setup.name}, {num_stages} stages, {kind}, {kv}"
        arrivals = make_arrivals(make_workload(workload, seed=0), sigma, 0)
        kv_tokens = int(hardware.kv_tokens * part)
        label = f"{world}, {prediction}"
        yield Case(label, world, replace(hardware, kv_tokens=kv_tokens), num_stages, arrivals)


def _rate(case: Case, settings: Settings) -> float:
    config = EngineConfig.model_validate(
        {"pipeline_parallel_size": case.num_stages, "max_num_seqs": 4096, **settings}
    )
    node = case.hardware.node(case.num_stages, config.block_size, MAX_MODEL_LEN)
    run = simulate(config, node, case.arrivals)
    return sum(life.output_len for life in run.lives) / run.makespan_s


if __name__ == "__main__":
    raise SystemExit(main())
