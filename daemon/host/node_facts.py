"""Node facts: what must be the same on all nodes, so that a wrong one is named before it matters.

The model may be at another place on each node, but must have the same contents: of each file of
weights, the size and three samples are compared. Two fine-tuned models of one kind differ in
nearly every number. The files of the tokenizer are compared as a whole: the server reads prompts
with that of the first node, and the last stage makes the masks of grammars from its own.
"""

import hashlib
import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from configs.config import Config
from configs.schema.model import ModelConfig
from daemon.checkpoint.weight_files import find_weights
from daemon.version import VERSION

PACKAGES = ("torch", "transformers")
# Settings that may differ from node to node, or that only the first node reads.
LOCAL = frozenset(
    {
        "model",
        "served_model_name",
        "tokenizer",
        "revision",
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
# A tokenizer is in the first of these; without it, in some of the others.
TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
TOKENIZER_EXTRAS = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")
SLOW_TOKENIZER = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
# What only the server reads, and the paths of the node on which a tokenizer was saved.
_UNUSED_CONFIG = ("chat_template", "_file", "_path", "local", "_only")
_SHOWN = 12


def facts_of(config: Config) -> dict[str, str]:
    """Versions, the model and settings of the engine and the stages, by name.

    The settings are those of `daemon.checkpoint.resolution.resolve`, so the model is a folder.
    """
    settings = config.engine.flat("json")
    return {
        **versions(),
        **dict(_model(config.model)),
        "nnodes": str(config.nodes.nnodes),
        **{name: json.dumps(value) for name, value in settings.items() if name not in LOCAL},
    }


def versions() -> dict[str, str]:
    """Those of tdpipe, Python and `PACKAGES` on this node."""
    return {
        "tdpipe": VERSION,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        **{package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _model(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """Hashes of the model's config.json, weights and tokenizer."""
    folder = Path(config.model)
    files = find_weights(folder, config.load_format)
    yield "the model's config.json", _hash([(folder / "config.json").read_bytes()])
    yield "the model's weights", _hash(part for path in files for part in _samples(path))
    yield "the tokenizer", _tokenizer(config)


def _tokenizer(config: ModelConfig) -> str:
    """Each file of the tokenizer with a hash; a hub id as it is, its files may not be here yet."""
    folder = Path(config.tokenizer or config.model)
    if not folder.is_dir():
        return f"{folder} at {config.revision or 'main'}"
    names = [TOKENIZER] if (folder / TOKENIZER).exists() else [*SLOW_TOKENIZER]
    names += [path.name for path in sorted(folder.glob("*.tiktoken"))] * (names[0] != TOKENIZER)
    files = [folder / name for name in (*names, *TOKENIZER_EXTRAS) if (folder / name).exists()]
    return ", ".join(f"{file.name} {_hash([_tokenizer_part(file)])}" for file in files) or "missing"


def _tokenizer_part(file: Path) -> bytes:
    """What of the file is the tokenizer."""
    contents = file.read_bytes()
    if file.name != TOKENIZER_CONFIG:
        return contents
    try:
        settings = json.loads(contents).items()
    except (ValueError, AttributeError):  # the stage that reads it says what is wrong with it
        return contents
    kept = {name: value for name, value in settings if not name.endswith(_UNUSED_CONFIG)}
    return json.dumps(kept, sort_keys=True).encode()


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
