"""The tokenizer's files: why a tokenizer cannot be loaded, and what is missing.

transformers tries one format after another and reports the last attempt, which is often not the
format of the model's files.
"""

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_COMPLETE = frozenset(("tokenizer.json", "tekken.json", "vocab.txt"))
_SENTENCEPIECE = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_KNOWN = (
    *("tokenizer.json", "tekken.json", "vocab.txt", "vocab.json", "merges.txt", "tiktoken.model"),
    *_SENTENCEPIECE,
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
# A line of tiktoken's format: a token in base64, and its rank.
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
_HEAD_BYTES = 4096


# What transformers says after it has tried every format.
_NOTHING_READ = "Couldn't instantiate the backend tokenizer"
_PROBE = "The capital is Paris."


def is_installed(module: str) -> bool:
    """Return whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that contains it is missing
        return False


def lack_of_files(folder: Path) -> str:
    """Return that a folder has no tokenizer, in one line; empty if it has one."""
    if any((folder / name).is_file() for name in _KNOWN) or any(folder.glob("*.tiktoken")):
        return ""
    names = "tokenizer.json, tokenizer.model, tekken.json, vocab.txt, vocab.json with merges.txt"
    return f"the folder has no tokenizer: none of {names}"


def explanation(
    folder: Path, reason: str, is_installed: Callable[[str], bool] = is_installed
) -> str:
    """Return why transformers cannot load the tokenizer, in one line; `reason` is its own error."""
    if lacking := lack_of_files(folder):
        return lacking
    files = [name for name in _KNOWN if (folder / name).is_file()]
    for name in files:
        if _head(folder / name).startswith(_LFS_POINTER):
            return f"{name} is a Git LFS pointer, not the file itself; 'git lfs pull' gets the file"
    missing = "" if _COMPLETE.intersection(files) else _missing(folder, files, is_installed)
    if missing or not reason.startswith(_NOTHING_READ):
        return missing or reason
    return (
        f"transformers does not read {', '.join(files)} for this type of model; the tokenizer's "
        "class may be named in tokenizer_config.json ('tokenizer_class')"
    )


def difference(folder: Path, encode: Callable[[str], list[int]]) -> str:
    """Return how `encode` differs from the sentencepiece model of the folder; empty if it does not.

    Without a tokenizer_config.json, transformers builds a tokenizer without a class of its own,
    which does not put the space before a text that the model was trained with.
    """
    models = [name for name in _SENTENCEPIECE if (folder / name).is_file()]
    if not models or any((folder / name).is_file() for name in _COMPLETE):
        return ""
    model = _sentencepiece_model(folder / models[0])
    if model is None or model.encode(_PROBE) == encode(_PROBE):
        return ""
    return (
        f"transformers encodes texts differently from {models[0]} itself; a tokenizer_config.json "
        "that names the 'tokenizer_class', or a tokenizer.json, may be missing"
    )


def _missing(folder: Path, files: list[str], is_installed: Callable[[str], bool]) -> str:
    """Return the file or package that is missing, or the file that is broken; empty if none is."""
    models = [name for name in files if name.endswith(".model")]
    if models:
        return _of_model(folder / models[0], is_installed)
    for name, other in (("merges.txt", "vocab.json"), ("vocab.json", "merges.txt")):
        if other in files and name not in files:
            return f"{name} is missing; {other} is not a tokenizer without it"
    return ""


def _of_model(file: Path, is_installed: Callable[[str], bool]) -> str:
    if _TIKTOKEN_LINE.match(_head(file)):
        is_readable = is_installed("tiktoken")
        return "" if is_readable else f"{file.name} is tiktoken's and needs: pip install tiktoken"
    packages = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    missing = [name for name, module in packages.items() if not is_installed(module)]
    if missing:
        return f"{file.name} needs: pip install {' '.join(missing)}"
    if _sentencepiece_model(file) is None:
        return f"{file.name} is neither a sentencepiece model nor in tiktoken's format"
    return ""


def _sentencepiece_model(file: Path) -> Any | None:
    """Return the model, or None if it cannot be read."""
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError):
        return None


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(_HEAD_BYTES)
