"""GPUs: the figures of the cards in `gpus.yaml`, which gives their sources."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

TABLE = Path(__file__).with_name("gpus.yaml")

Architecture = Literal["ampere", "ada", "hopper"]

# From a small GPU to several times the largest one of 2026.
PLAUSIBLE = {
    "peak_tflops": (0.1, 50_000),
    "matmul_tflops": (0.1, 50_000),
    "bandwidth_gb_s": (1, 50_000),
    "memory_gib": (0.5, 2_000),
    "num_sms": (1, 2_000),
}


class GpuError(ValueError):
    """The GPU is not in the table; the text is one line for the user."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. Large bf16 products reach `matmul_tflops`; the data sheet has `peak_tflops`."""

    name: str
    architecture: Architecture
    peak_tflops: float
    matmul_tflops: float
    bandwidth_gb_s: float
    memory_gib: float
    num_sms: int

    def __post_init__(self) -> None:
        """Check the figures. Raises `GpuError`, which names the field and what is plausible."""
        for field, (least, most) in PLAUSIBLE.items():
            figure = getattr(self, field)
            if not least <= figure <= most:
                raise GpuError(
                    f"{self.name}: {field} {figure} cannot be: between {least:g} and {most:g} "
                    "are plausible"
                )
        if self.matmul_tflops > self.peak_tflops:
            raise GpuError(
                f"{self.name}: matmul_tflops {self.matmul_tflops} cannot be: at most peak_tflops, "
                f"{self.peak_tflops}"
            )

    @property
    def bytes_per_s(self) -> float:
        """Memory bandwidth of the data sheet."""
        return self.bandwidth_gb_s * 1e9

    @property
    def matmul_flops(self) -> float:
        """Floating-point operations per second in large products."""
        return self.matmul_tflops * 1e12

    @property
    def memory_bytes(self) -> int:
        """Memory available to programs."""
        return int(self.memory_gib * 2**30)


def read_gpus() -> dict[str, Gpu]:
    """All GPUs of the table by name, in its order."""
    table = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: Gpu(name=name, **figures) for name, figures in table.items()}


def find_gpu(name: str) -> Gpu:
    """The GPU of that name, ignoring case. Raises `GpuError`, which lists the known names."""
    gpus = read_gpus()
    for known, gpu in gpus.items():
        if known.lower() == name.lower():
            return gpu
    raise GpuError(f"no figures for a GPU {name!r}; known GPUs: {', '.join(gpus)}")
