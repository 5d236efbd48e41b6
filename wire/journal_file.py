"""The file of a journal: the settings of a decision maker, then its events, for replay.

The file consists of length-prefixed frames. Each process writes its settings as JSON, then one
entry per event as MessagePack. If a process was killed, or the disk was full, the file is valid up
to the last complete frame, and the next process continues there.
"""

import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec

_LENGTH = struct.Struct("<I")

log = logging.getLogger("tdpipe")


class JournalError(Exception):
    """The file is not a journal, or the decisions differ; the message is for the user."""


class JournalFile:
    """Writes a journal, or continues one. Raises `OSError` if the file cannot be written.

    Only the owner of the file can read it, because it may contain what clients sent.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, append: bool = False) -> None:
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | (0 if append else os.O_TRUNC)
        self._file: BinaryIO = os.fdopen(os.open(path, flags, 0o600), "r+b")
        os.fchmod(self._file.fileno(), 0o600)  # needed if the file existed
        self._file.truncate(self._file.seek(sum(_sizes(path))))
        self._encoder = msgspec.msgpack.Encoder()
        self._frame(msgspec.json.encode(settings))

    def write(self, entry: msgspec.Struct) -> None:
        """Append an entry; a full disk ends only the journal."""
        if self._file.closed:
            return
        try:
            self._frame(self._encoder.encode(entry))
        except OSError as error:
            self._log_end(error)
            with suppress(OSError):
                self._file.close()

    def _frame(self, payload: bytes) -> None:
        self._file.write(_LENGTH.pack(len(payload)) + payload)

    def __enter__(self) -> Self:
        return self

    def _log_end(self, error: OSError) -> None:
        log.error("the journal %s ends here: %s", self._path, error)

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        except OSError as error:
            self._log_end(error)


def digest(messages: Iterable[msgspec.Struct]) -> int:
    """A checksum (CRC-32) of the encoded messages."""
    checksum = 0
    for message in messages:
        checksum = zlib.crc32(msgspec.msgpack.encode(message), checksum)
    return checksum


def frames(path: Path) -> Iterator[bytes]:
    """The complete frames of a file, in order. Raises `OSError`."""
    with path.open("rb") as file:
        for size in _sizes(path):
            yield file.read(size)[_LENGTH.size :]


def settings_in(frame: bytes) -> dict[str, Any] | None:
    """The settings with which a process begins, by flat names; None if the frame is an entry.

    Raises `ValueError` if it is neither.
    """
    if not frame.startswith(b"{"):
        return None
    return msgspec.json.decode(frame, type=dict[str, Any])


def may_replace(path: Path) -> bool:
    """Whether a file is empty or begins like a journal: a length, then settings as JSON."""
    with path.open("rb") as file:
        head = file.read(_LENGTH.size + 1)
    return not head or head[_LENGTH.size :] == b"{"


def not_a_journal(path: Path) -> JournalError:
    """The error for a file that is no journal, or one that this version cannot read."""
    return JournalError(f"{path} is not a journal of this version")


def _sizes(path: Path) -> Iterator[int]:
    """Yield the size of each complete frame in bytes, with the prefix."""
    with path.open("rb") as file:
        left = os.fstat(file.fileno()).st_size
        while len(prefix := file.read(_LENGTH.size)) == _LENGTH.size:
            size = _LENGTH.size + _LENGTH.unpack(prefix)[0]
            left -= size
            if left < 0:
                return
            yield size
            file.seek(size - _LENGTH.size, os.SEEK_CUR)
