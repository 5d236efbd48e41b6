"""Checks of one node by itself: versions, devices, limits of the system, the model's files."""

import errno
import re
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from configs.config import Config
from daemon import start_checks
from daemon.host import meeting_point, resource_limits
from daemon.host.meeting_point import AddressError
from daemon.host.node_facts import versions
from daemon.start_error import StartError
from doctor.findings import Finding, error, ok, warning

DRIVER = Path("/proc/driver/nvidia/version")
# Copied to measure the memory bandwidth: larger than any cache.
COPY_BYTES = 512 << 20
NUM_COPIES = 5


def check_node(config: Config) -> Iterator[Finding]:
    """All of them. The limit on open files is raised, as by the daemon, and stays so."""
    yield from _versions()
    yield from _devices(config)
    yield from _start(config)
    resource_limits.raise_open_files()
    shortages = list(resource_limits.shortages(config))
    yield from (warning("limits", shortage) for shortage in shortages)
    if not shortages:
        yield ok("limits", "open files, /dev/shm and disk space suffice")


def check_meeting_point(config: Config) -> Iterator[Finding]:
    """Whether this node can use its addresses, and the first one listen for the others."""
    try:
        meeting_point.check_node(config)
    except AddressError as problem:
        is_used = problem.errno == errno.EADDRINUSE
        yield error("ports", f"{problem}{' (maybe a daemon that still runs)' * is_used}")


def _start(config: Config) -> Iterator[Finding]:
    """What the daemon checks when it starts."""
    try:
        start_checks.check_start(config, serves=False)
    except AddressError:
        pass  # see `check_meeting_point`
    except StartError as problem:
        yield error("start", str(problem))
    if config.nodes.headless:
        return
    listen = config.server.listen
    try:
        start_checks.check_listen(listen)
    except StartError as problem:
        yield error("ports", str(problem))
    else:
        where = listen.uds or f"port {listen.port or '(any)'} of {listen.host}"
        yield ok("ports", f"the server can listen on {where}")


def nccl_of(config: Config) -> str:
    """The version of NCCL between the stages of this node and others; empty on CPUs."""
    uses_gpu = config.pipeline.device != "cpu" and torch.cuda.is_available()
    return _nccl_version() if uses_gpu else ""


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
        text += f", CUDA {torch.version.cuda}, NCCL {_nccl_version()}"
    if driver := _driver_version():
        text += f", NVIDIA driver {driver}"
    yield ok("versions", text)


def _nccl_version() -> str:
    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


def _driver_version() -> str:
    """As in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 ...`."""
    try:
        first_line, *_ = DRIVER.read_text().splitlines()
    except (OSError, ValueError):
        return ""
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", first_line)
    return found[0] if found else "unknown"


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
