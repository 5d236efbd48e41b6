"""GPUs: the figures of the cards in `gpus.yaml`, which gives their sources."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

TABLE = Path(__file__).with_name("gpus.yaml")

Architecture = Literal["ampere", "ada", "hopper"]


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
