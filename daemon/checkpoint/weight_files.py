"""The files of weights in a checkpoint's folder: all there, and none of them cut short.

Only names, sizes and headers are read, which takes milliseconds. The numbers in the tensors cannot
be checked: safetensors has no checksum.
"""

import json
import struct
from pathlib import Path
from typing import Literal

from daemon.start_error import StartError

_LFS_POINTER = b"version https://git-lfs"
# What safetensors itself accepts (`MAX_HEADER_SIZE`).
_MAX_HEADER_BYTES = 100_000_000
_LENGTH = struct.Struct("<Q")  # of the header, before it
# The file with all weights, and the index of several files, as transformers looks for them.
_NAMES = {
    "safetensors": ("model.safetensors", "model.safetensors.index.json"),
    "pt": ("pytorch_model.bin", "pytorch_model.bin.index.json"),
}
SUFFIXES = {"safetensors": ".safetensors", "pt": ".bin"}
# The same weights again, for Mistral's own library.
OTHERS = "consolidated"


def find_weights(folder: Path, load_format: Literal["safetensors", "pt"]) -> list[Path]:
    """The files of weights of this format."""
    files = sorted(folder.glob(f"*{SUFFIXES[load_format]}"))
    return [file for file in files if not file.name.startswith(OTHERS)]


def check_weights(folder: Path, load_format: Literal["safetensors", "pt"]) -> None:
    """Raise `StartError` if there are no weights of this format, or not all of them."""
    suffix = SUFFIXES[load_format]
    files = find_weights(folder, load_format)
    whole, index = _NAMES[load_format]
    if not (folder / whole).exists() and (folder / index).exists():
        _check_index(folder, index)
    elif not files:
        raise StartError(_no_weights(folder, load_format, suffix))
    for file in files:
        _check_file(file, is_safetensors=load_format == "safetensors")


def _no_weights(folder: Path, load_format: str, suffix: str) -> str:
    if load_format == "safetensors" and any(folder.glob("pytorch_model*.bin")):
        return (
            f"{folder} has weights only in pytorch_model.bin, which is read with load_format pt "
            "(--load-format pt); safetensors load faster, and without unpickling"
        )
    other = "pt" if load_format == "safetensors" else "safetensors"
    return (
        f"{folder} has no weights: there is no *{suffix} (load_format {load_format}); "
        f"--load-format {other} looks for *{SUFFIXES[other]}"
    )


def _check_index(folder: Path, index: str) -> None:
    try:
        named = set(json.loads((folder / index).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise StartError(f"{folder / index} is truncated or damaged: {error}") from error
    missing = sorted(name for name in named if not (folder / name).is_file())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise StartError(
            f"{folder} lacks {missing[0]}{more} of the {len(named)} files that {index} names; "
            "fetch the checkpoint again"
        )


def _check_file(path: Path, *, is_safetensors: bool) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
            if head == _LFS_POINTER:
                raise StartError(
                    f"{path} is a Git LFS pointer and not the file; `git lfs pull` gets the file"
                )
            reason = _damage(path) if is_safetensors else "" if head else "it is empty"
    except OSError as error:
        raise StartError(f"cannot read {path}: {error.strerror}") from error
    if reason:
        raise StartError(f"{path} is truncated or damaged: {reason}; fetch it again")


def _damage(path: Path) -> str:
    """What is wrong with the header of a safetensors file, or with the size of the file.

    The format: https://huggingface.co/docs/safetensors/index#format.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_LENGTH.size)
        if len(first) < _LENGTH.size:
            return f"it has {num_bytes} bytes"
        (header_bytes,) = _LENGTH.unpack(first)
        if header_bytes > min(num_bytes - _LENGTH.size, _MAX_HEADER_BYTES):
            return "its header cannot be read"
        header = file.read(header_bytes)
    try:
        tensors = {name: t for name, t in json.loads(header).items() if name != "__metadata__"}
        data_bytes = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, AttributeError, TypeError, IndexError):
        return "its header cannot be read"
    expected = _LENGTH.size + header_bytes + data_bytes
    return "" if num_bytes == expected else f"it has {num_bytes:,} bytes instead of {expected:,}"
