"""Start checks: what makes a start impossible is found before the first process is started.

Each check takes milliseconds. The processes check the same again when they use it, because another
process may have taken a port meanwhile, and because some of it only they can see.
"""

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from configs.config import Config
from configs.schema.model import ModelConfig
from configs.schema.pipeline import PipelineConfig
from configs.schema.runtime import RuntimeConfig, data_dir
from configs.schema.server import ListenConfig
from daemon.host.binding import bind
from daemon.host.host_memory import total_bytes
from daemon.start_error import StartError

GENERATION_CONFIG = "generation_config.json"
# The devices of NVIDIA (also on Jetson and in WSL) and of AMD.
GPU_DEVICES = ("nvidia[0-9]*", "nvhost-gpu", "nvgpu", "dxg", "kfd")
_DEV = Path("/dev")
_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT)


def check_start(config: Config, *, serves: bool = True) -> None:
    """Raise `StartError` if these settings cannot work on this machine.

    Without `serves`, no HTTP server is started.
    """
    if serves and not config.nodes.headless:
        check_listen(config.server.listen)
    _check_files(config)
    _check_data_dir(config.runtime)
    _check_device(config.pipeline)
    _check_memory(config)


def check_listen(config: ListenConfig) -> None:
    """Bind the server's port for a moment, without listening. Raises `StartError`."""
    if config.uds is not None:
        if not config.uds.absolute().parent.is_dir():
            raise StartError(
                f"uds: cannot listen on {config.uds}, there is no folder {config.uds.parent}"
            )
    elif config.port:
        bind(config.host, config.port).close()
    else:
        bind(config.host, 0).close()


def has_gpu() -> bool:
    """Whether this machine, or this container, has a GPU, as far as /dev shows it."""
    return any(next(_DEV.glob(name), None) for name in GPU_DEVICES)


def _check_files(config: Config) -> None:
    """Check that what is named is there."""
    for name, path in _named_files(config):
        if obstacle := _obstacle(path):
            raise StartError(f"{name}: {path} {obstacle}")
    written = {"journal": config.runtime.journal, "trace": config.runtime.trace}
    for name, file in written.items():
        if file is not None and not file.absolute().parent.is_dir():
            raise StartError(f"{name}: cannot write {file}, there is no folder {file.parent}")
    folder = config.predictor.predictor_folder
    if folder is not None and not folder.is_dir():
        raise StartError(
            f"predictor: there is no folder {folder}; other values are histogram, constant:N and "
            "oracle"
        )
    _check_tokenizer(config.model)


def _named_files(config: Config) -> Iterator[tuple[str, Path]]:
    listen, model = config.server.listen, config.model
    named: Mapping[str, Path | None] = {
        "chat_template": config.chat.chat_template,
        "profile": config.pipeline.profile,
        "ssl_certfile": listen.ssl_certfile,
        "ssl_keyfile": listen.ssl_keyfile,
        "ssl_ca_certs": listen.ssl_ca_certs,
    }
    yield from ((name, path) for name, path in named.items() if path is not None)
    if model.generation_config not in ("auto", "vllm"):
        yield "generation_config", Path(model.generation_config) / GENERATION_CONFIG


def _obstacle(path: Path) -> str:
    """Why the file cannot be read; empty if it can."""
    if not os.path.exists(path):  # False without the right to look, too
        return "does not exist"
    if path.is_dir():
        return "is a folder, not a file"
    return "" if os.access(path, os.R_OK) else "cannot be read by this user"


def _check_tokenizer(config: ModelConfig) -> None:
    """A relative path may be a hub id."""
    folder = Path(config.tokenizer or "")
    if folder.is_absolute() and not os.path.exists(folder):
        raise StartError(f"tokenizer: there is no folder {folder}")


def _check_data_dir(config: RuntimeConfig) -> None:
    """Write into the folder, if it is not the default one: without that, a daemon keeps nothing.

    On a full disk it serves nevertheless.
    """
    folder = config.data_dir
    if folder == data_dir():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno not in _DISK_IS_FULL:
            raise StartError(f"data_dir: cannot write to {folder}: {error.strerror}") from error


def _check_device(config: PipelineConfig) -> None:
    if config.device != "cuda":
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not has_gpu():
        raise StartError(
            "device cuda: this machine has no GPU (no /dev/nvidia0; a container needs "
            "`docker run --gpus all`)"
        )
    if visible is not None and visible.strip() in ("", "-1"):
        raise StartError(f"device cuda: CUDA_VISIBLE_DEVICES is {visible!r}, which hides all GPUs")
    version = metadata.version("torch")
    if version.endswith("+cpu"):
        raise StartError(f"device cuda: the installed torch {version} is a build without CUDA")


def _check_memory(config: Config) -> None:
    """Compare the KV cache of all stages on this host with its memory; those on GPUs check theirs.

    Whether it fits into what is free is not checked: other processes may be about to end.
    """
    wanted, pipeline = config.cache.kv_cache_memory_bytes, config.pipeline
    is_on_cpu = pipeline.device == "cpu" or (pipeline.device == "auto" and not has_gpu())
    if wanted is None or not is_on_cpu:
        return
    num_ranks, has_bytes = config.nodes.num_local_ranks(pipeline), total_bytes()
    if num_ranks * wanted > has_bytes:
        stages = f" for each of {num_ranks} stages" if num_ranks > 1 else ""
        raise StartError(
            f"kv_cache_memory_bytes {wanted}{stages} is more than the memory of this machine, "
            f"{has_bytes} bytes; at most {has_bytes // num_ranks} are possible"
        )
