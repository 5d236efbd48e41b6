"""Node facts: what must be the same on all nodes, so that a wrong one is named before it matters.

The model may be at another place on each node, but must have the same contents: of each file of
weights, the size and three samples are compared. Two fine-tuned models of one kind differ in
nearly every number.
"""

import hashlib
import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from configs.config import Config
from daemon.version import VERSION

PACKAGES = ("torch", "transformers")
# Settings that may differ from node to node, or that only the first node reads.
LOCAL = frozenset(
    {
        "model",
        "served_model_name",
        "tokenizer",
        "generation_config",
        "device",
        "num_threads",
        "profile",
        "profile_seconds",
        "remeasure",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
    }
)
SAMPLE_BYTES = 1 << 16
_SHOWN = 12
_WEIGHTS = ("*.safetensors", "*.bin")


def facts_of(config: Config) -> dict[str, str]:
    """Versions, the model and settings of the engine and the stages, by name."""
    settings = config.engine.flat("json")
    return {
        "tdpipe": VERSION,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{package: _version(package) for package in PACKAGES},
        **dict(_model(config.model.model, config.model.revision)),
        **{name: json.dumps(value) for name, value in settings.items() if name not in LOCAL},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _model(model: str, revision: str | None) -> Iterator[tuple[str, str]]:
    """Hashes of the model's config.json and weights; of a hub id, of its config.json."""
    folder = Path(model)
    if not folder.is_dir():
        yield "the model's config.json", _hub_config(model, revision)
        return
    yield "the model's config.json", _hash([(folder / "config.json").read_bytes()])
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))
    yield "the model's weights", _hash(part for path in files for part in _samples(path))


def _hub_config(model: str, revision: str | None) -> str:
    # A late import: it takes 0.2 s, and only several nodes need it.
    from huggingface_hub import hf_hub_download

    try:
        return _hash([Path(hf_hub_download(model, "config.json", revision=revision)).read_bytes()])
    except (OSError, ValueError):  # those of the hub's library are among them
        return f"that of {model}"


def _samples(path: Path) -> Iterator[bytes]:
    """The name, the size and three samples of a file."""
    size = path.stat().st_size
    yield f"{path.name} {size} ".encode()
    with path.open("rb") as file:
        for at in (0, size // 2, max(0, size - SAMPLE_BYTES)):
            file.seek(at)
            yield file.read(SAMPLE_BYTES)


def _hash(parts: "Iterator[bytes] | list[bytes]") -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:_SHOWN]
