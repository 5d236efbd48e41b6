"""The header of a GGUF file: its settings and the places of its tensors, read in milliseconds.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The tensors
themselves are read by transformers (`workers.gguf_conversion`).
"""

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
# Format and bytes of each type of number.
_NUMBERS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?")))
_NUMBERS |= {10: "<Q", 11: "<q", 12: "<d"}
_ALIGNMENT = 32  # unless the file names another


class GgufError(Exception):
    """The file cannot be served; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor's type (a number of ggml's), its number of values, and where it begins."""

    type: int
    num_values: int
    offset: int  # in bytes from the beginning of the file


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """The settings (without arrays) and the tensors by name."""

    settings: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def num_values(self) -> int:
        """The number of values of all tensors."""
        return sum(tensor.num_values for tensor in self.tensors.values())


def is_gguf(path: Path) -> bool:
    """Whether the file begins as GGUF does."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read_header(path: Path) -> GgufHeader:
    """Read the header. Raises `GgufError` for a file that is damaged or of another kind."""
    with path.open("rb") as file:
        num_bytes = file.seek(0, 2)
        if num_bytes < len(MAGIC):
            raise GgufError(f"{path} is not a GGUF file")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content[: len(MAGIC)] != MAGIC:
                raise GgufError(f"{path} is not a GGUF file")
            try:
                header = _Reader(content, len(MAGIC)).header(path)
            except (struct.error, UnicodeDecodeError, ZeroDivisionError) as error:
                raise GgufError(f"{path} is truncated or damaged: its header cannot be read") from (
                    error
                )
    beyond = [name for name, tensor in header.tensors.items() if tensor.offset >= num_bytes]
    if beyond:
        raise GgufError(f"{path} is truncated: {beyond[0]} and {len(beyond) - 1} more are missing")
    return header


class _Reader:
    """Reads values one after the other."""

    def __init__(self, content: mmap.mmap, position: int) -> None:
        self._content = content
        self._position = position

    def header(self, path: Path) -> GgufHeader:
        version, num_tensors, num_settings = (self._number("<I"), *self._numbers("<QQ"))
        if version not in VERSIONS:
            raise GgufError(f"{path} has version {version} of GGUF, and only 2 and 3 can be read")
        settings = {}
        for _ in range(num_settings):
            key = self._string()
            value = self._value(self._number("<I"))
            if value is not None:
                settings[key] = value
        found = [self._tensor() for _ in range(num_tensors)]
        alignment = int(settings.get("general.alignment", _ALIGNMENT))
        data = -(-self._position // alignment) * alignment
        tensors = {name: GgufTensor(type_, size, data + at) for name, type_, size, at in found}
        return GgufHeader(settings, tensors)

    def _tensor(self) -> tuple[str, int, int, int]:
        name = self._string()
        num_values = 1
        for _ in range(self._number("<I")):
            num_values *= self._number("<Q")
        type_, offset = self._number("<I"), self._number("<Q")
        return name, type_, num_values, offset

    def _value(self, kind: int) -> Any:
        """A value; None for an array."""
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._number(self._format(kind))
        kind, count = self._number("<I"), self._number("<Q")
        if kind == _STRING:
            for _ in range(count):
                self._skip(self._number("<Q"))
        else:
            self._skip(count * struct.calcsize(self._format(kind)))
        return None

    def _format(self, kind: int) -> str:
        try:
            return _NUMBERS[kind]
        except KeyError:
            raise struct.error(f"type {kind}") from None

    def _string(self) -> str:
        num_bytes = self._number("<Q")
        begin = self._position
        self._skip(num_bytes)
        return self._content[begin : self._position].decode()

    def _skip(self, num_bytes: int) -> None:
        self._position += num_bytes
        if self._position > len(self._content):
            raise struct.error("beyond the end")

    def _number(self, format_: str) -> Any:
        return self._numbers(format_)[0]

    def _numbers(self, format_: str) -> tuple[Any, ...]:
        values = struct.unpack_from(format_, self._content, self._position)
        self._position += struct.calcsize(format_)
        return values
