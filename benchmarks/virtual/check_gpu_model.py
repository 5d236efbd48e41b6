"""The error of the GPU model against measured times.

`python -m benchmarks.virtual.check_gpu_model [FOLDER]` prints a Markdown table with two kinds of
rows: whole forward passes on L20, and the matrices of one layer of Llama-2-70B on other GPUs. The
former need TD-Pipe's published profiles, which are not part of this project: FOLDER must have a
copy of them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.profiles import Profile, ProfileError, read_profile
from simulator.hardware.gpu_model import forward_s, matrices_s
from simulator.hardware.gpus import find_gpu
from simulator.hardware.model_shape import read_shape

PROFILES = Path(__file__).parents[3] / "shared" / "profiles"
# File, GPU, model.
MEASURED = (
    ("L20-Llama-13B.csv", "L20", "llama2-13b"),
    ("L20-Qwen2.5-32B.csv", "L20", "qwen2.5-32b"),
    ("L20-opt-125m.csv", "L20", "opt-125m"),
)
# GPU -> rows -> milliseconds of the four products of one layer: sums of medians in
# data/profiling/compute/{a100,a40,h100}/meta-llama/Llama-2-70b-hf/mlp.csv of microsoft/vidur.
LAYER_OF_70B = {
    "A100-80G-SXM": {1: 1.072, 16: 1.115, 64: 1.125, 128: 1.297, 136: 1.950, 256: 2.117,
                     264: 2.944, 640: 4.912, 648: 5.882, 4096: 29.25},
    "A40": {1: 3.200, 16: 3.171, 32: 3.228, 64: 3.368, 80: 3.437},
    "H100-SXM": {1: 0.593, 16: 0.581, 64: 0.600, 128: 0.611, 136: 0.698, 256: 0.719,
                 264: 1.019, 640: 2.025, 648: 2.039, 4096: 10.09},
}  # fmt: skip
LAYERS_OF_70B = 80


@dataclass(frozen=True, slots=True)
class Errors:
    """Relative errors of the predicted seconds; positive if the prediction is too long."""

    num_tokens: tuple[int, ...]
    relative: NDArray[np.float64]

    @property
    def median(self) -> float:
        """The median of the absolute errors."""
        return float(np.median(np.abs(self.relative)))

    @property
    def p95(self) -> float:
        """The 95th percentile of the absolute errors."""
        return float(np.percentile(np.abs(self.relative), 95))

    @property
    def worst(self) -> tuple[int, float]:
        """Tokens and error where the error is largest."""
        index = int(np.argmax(np.abs(self.relative)))
        return self.num_tokens[index], float(self.relative[index])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; return 1 if a profile cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.virtual.check_gpu_model")
    parser.add_argument("folder", nargs="?", type=Path, default=PROFILES)
    folder: Path = parser.parse_args(argv).folder
    try:
        rows = list(check_profiles(folder))
    except ProfileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not rows:
        print(
            f"{folder} has none of the profiles (L20-*.csv); pass the folder that has them. "
            "Only the rows of single layers follow.",
            file=sys.stderr,
        )
    print("| measured | median | p95 | worst |\n|---|---:|---:|---|")
    for name, errors in [*rows, *check_layers()]:
        num_tokens, worst = errors.worst
        print(
            f"| {name} | {errors.median:.1%} | {errors.p95:.1%} | {worst:+.1%} at {num_tokens:,} |"
        )
    return 0


def check_profiles(folder: Path) -> Iterator[tuple[str, Errors]]:
    """The errors of each measured profile that is in the folder. Raises `ProfileError`."""
    for file, gpu, model in MEASURED:
        if (folder / file).exists():
            errors = errors_of(read_profile(folder / file), gpu, model)
            yield f"{model} on {gpu}, whole forward", errors


def errors_of(measured: Profile, gpu: str, model: str) -> Errors:
    """The errors at the measured numbers of tokens."""
    num_tokens = np.array(measured.num_tokens)
    seconds = forward_s(find_gpu(gpu), read_shape(model), num_tokens)
    return Errors(measured.num_tokens, seconds / np.array(measured.seconds) - 1)


def check_layers() -> Iterator[tuple[str, Errors]]:
    """The errors of one layer's matrices on GPUs other than L20.

    Not all of them are independent tests of the model: the read rates of these GPUs were fitted to
    the same figures (up to 64 rows), and so was the compute rate of the A100 (4,096 rows).
    """
    parameters = read_shape("llama2-70b").layer_parameters // LAYERS_OF_70B
    for gpu, measured in LAYER_OF_70B.items():
        rows = np.array(list(measured))
        seconds = matrices_s(find_gpu(gpu), parameters, rows)
        relative = seconds * 1000 / np.array(list(measured.values())) - 1
        yield f"llama2-70b on {gpu}, a layer's matrices", Errors(tuple(measured), relative)


if __name__ == "__main__":
    sys.exit(main())
