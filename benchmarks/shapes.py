"""Stages against ranks on the same cores: `make shapes`.

The random Llama of `make real-policies`, in bf16, serves 200 requests of ShareGPT-like lengths at a
quarter of their size, all at once, with an ample KV cache: as a pipeline, with tensor parallelism,
with both, and as a single process with as many threads. The shapes run in turn. Prints Markdown,
medians over the rounds.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from tqdm import tqdm

from bench.machine import describe_machine
from benchmarks.daemon_run import log_of, measure
from benchmarks.real_policies import KV_BYTES, SCALE, WORKLOAD, make_random_llama

# Stages, ranks of each, and threads of each rank.
SHAPES = ((1, 1, 2), (2, 1, 1), (1, 2, 1), (2, 2, 1))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a daemon or a load failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shapes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="[3]")
    options = parser.parse_args(argv)
    rates: dict[tuple[int, int, int], list[float]] = {shape: [] for shape in SHAPES}
    with tempfile.TemporaryDirectory(prefix="tdpipe-shapes-") as temporary:
        model = make_random_llama(Path(temporary) / "llama")
        turns = [shape for _ in range(options.rounds) for shape in SHAPES]
        for number, shape in enumerate(tqdm(turns, file=sys.stderr)):
            folder = Path(temporary) / str(number)
            num_stages, num_ranks, num_threads = shape
            flags = [f"--tensor-parallel-size={num_ranks}", f"--num-threads={num_threads}"]
            # Each rank holds its part of the KV heads.
            flags += [f"--kv-cache-memory-bytes={2 * KV_BYTES['ample'] // num_stages}"]
            flags += [f"--data-dir={folder.parent / 'data'}"]
            load = [f"--workload={WORKLOAD}", f"--scale={SCALE}"]
            try:
                report = measure(model, num_stages, flags, load, folder)
            except (OSError, subprocess.SubprocessError) as error:
                print(f"error: {shape}: {error}\n{log_of(folder)}", file=sys.stderr)
                return 1
            rates[shape].append(report["summary"]["output_tokens_per_s"])
    machine = describe_machine()
    print(f"{machine['cpu']}, {machine['num_cores']} cores")
    print("\n| stages | ranks of a stage | threads of a rank | output tokens/s |")
    print("|--:|--:|--:|--:|")
    for (num_stages, num_ranks, num_threads), found in rates.items():
        print(
            f"| {num_stages} | {num_ranks} | {num_threads} | {median(found):,.0f} "
            f"({min(found):,.0f}–{max(found):,.0f}) |"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
