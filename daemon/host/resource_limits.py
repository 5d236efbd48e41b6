"""Resource limits: raises the limit on open files, and finds resources that may be too small.

Both happen before the start. Each shortage is one line that includes the remedy. A shortage does
not abort the start, because a daemon with little load needs less than its settings allow.
"""

import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from configs.config import Config
from configs.schema.pipeline import PipelineConfig

# Files that a process opens itself: libraries, sockets, logs, caches of the tokenizer.
SPARE_FILES = 256
# A higher limit would only slow down code that iterates over all possible descriptors.
MOST_FILES = 1 << 20
# Shared memory that NCCL may need for the links of a stage. A Docker container has 64 MiB.
SHARED_BYTES_PER_STAGE = 64 << 20
SHARED_MEMORY = Path("/dev/shm")
NVIDIA_DRIVER = Path("/proc/driver/nvidia")


def raise_open_files() -> None:
    """Raise the limit on open files, for this process and its children, as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def shortages(config: Config) -> Iterator[str]:
    """Yield one line for each resource that these settings may need and the system lacks."""
    yield from _open_files(config.server.limits.max_num_queued_reqs + config.engine.max_live)
    yield from _shared_memory(config.pipeline)
    yield from _disk(config.runtime.data_dir, config.batches.max_file_bytes)


def _open_files(clients: int) -> Iterator[str]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = clients + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        yield (
            f"at most {soft} files may be open, {needed} are needed for {clients} clients "
            f"(max_num_queued_reqs, max_num_seqs): raise the limit with `ulimit -Hn {needed}`, "
            f"LimitNOFILE={needed} in a systemd unit, or `docker run --ulimit nofile={needed}`"
        )


def _shared_memory(config: PipelineConfig) -> Iterator[str]:
    """Check the shared memory, which only NCCL needs, i.e. several stages with a GPU each."""
    num_ranks = config.num_ranks
    if config.device == "cpu" or num_ranks < 2 or not NVIDIA_DRIVER.exists():
        return
    needed = num_ranks * SHARED_BYTES_PER_STAGE
    free = _free_bytes(SHARED_MEMORY)
    if free < needed:
        yield (
            f"{SHARED_MEMORY} has {free >> 20} MiB free, and NCCL may need {needed >> 20} MiB for "
            f"{num_ranks} ranks: enlarge it with `docker run --shm-size=1g` or `--ipc=host`, in "
            "Kubernetes with an emptyDir with medium Memory"
        )


def _disk(data_dir: Path, max_file_bytes: int) -> Iterator[str]:
    free = _free_bytes(data_dir)
    if free < max_file_bytes:
        yield (
            f"{data_dir} (data_dir) has {free >> 20} MiB free, less than one upload may "
            f"have (max_file_bytes, {max_file_bytes >> 20} MiB), so files and batches may "
            "fail: free space, move data_dir, or lower max_file_bytes"
        )


def _free_bytes(folder: Path) -> int:
    """Free bytes of the file system of a folder, which may not exist; `maxsize` if unknown."""
    try:
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        return shutil.disk_usage(folder).free
    except OSError:
        return sys.maxsize
