"""Checks of one node by itself: versions, devices, limits of the system, the model's files."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.config import Config
from daemon.host import resource_limits
from daemon.host.node_facts import versions
from doctor.findings import Finding, error, ok, warning

DRIVER = Path("/proc/driver/nvidia/version")
# Copied to measure the memory bandwidth: larger than any cache.
COPY_BYTES = 512 << 20
NUM_COPIES = 5


def check_node(config: Config) -> Iterator[Finding]:
    """All of them; nothing is changed."""
    yield from _versions()
    yield from _devices(config)
    shortages = list(resource_limits.shortages(config))
    yield from (warning("limits", shortage) for shortage in shortages)
    if not shortages:
        yield ok("limits", "open files, /dev/shm and disk space suffice")


def memory_bandwidth(config: Config) -> float:
    """Bytes per second that a stage on this node can read, from copies within its memory."""
    uses_gpu = config.pipeline.device != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if uses_gpu else "cpu")
    source = torch.ones(COPY_BYTES // 4, dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    seconds = [_copy_s(source, target) for _ in range(NUM_COPIES)]
    return 2 * COPY_BYTES / min(seconds)


def _copy_s(source: torch.Tensor, target: torch.Tensor) -> float:
    began_at = time.perf_counter()
    target.copy_(source)
    if source.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began_at


def _versions() -> Iterator[Finding]:
    text = ", ".join(f"{name} {version}" for name, version in versions().items())
    if torch.cuda.is_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        text += f", CUDA {torch.version.cuda}, NCCL {nccl}"
    yield ok("versions", text)


def _devices(config: Config) -> Iterator[Finding]:
    wanted, num_gpus = config.pipeline.device, torch.cuda.device_count()
    num_local = config.nodes.num_local_ranks(config.pipeline)
    if wanted == "cpu" or not num_gpus:
        if wanted == "cuda":
            yield error("devices", f"device is cuda, but torch {torch.__version__} finds no GPU")
        elif DRIVER.exists():
            yield warning(
                "devices",
                f"there is an NVIDIA driver, but the {num_local} stages of this node run on CPUs",
            )
        else:
            yield ok("devices", f"{num_local} stages on CPUs")
        return
    for gpu in range(num_gpus):
        found = torch.cuda.get_device_properties(gpu)
        yield ok(
            "devices",
            f"GPU {gpu}: {found.name}, {found.total_memory / 2**30:.0f} GiB, "
            f"compute capability {found.major}.{found.minor}",
        )
    if num_gpus < num_local:
        yield warning(
            "devices",
            f"{num_local} stages share {num_gpus} GPUs: they take turns, and "
            "activations go through the host",
        )
