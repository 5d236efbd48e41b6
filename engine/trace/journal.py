"""The journal records every event, with its time and a digest of the decisions, for replay.

The file consists of length-prefixed frames. Each engine process writes its settings as JSON, then
one `Entry` per event as MessagePack. If a process was killed, or the disk was full, the file is
valid up to the last complete frame, and the next process continues there.
"""

import logging
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from configs.config import EngineConfig
from configs.output_files import OutputFileError
from engine.scheduler import Outgoing, Scheduler
from wire.messages import Event

_LENGTH = struct.Struct("<I")
_NONE = "{} is not a journal of this version"

log = logging.getLogger("tdpipe")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event as passed to the scheduler, and the digest of the resulting messages."""

    now: float
    event: Event
    digest: int


class JournalError(Exception):
    """The file is not a journal, or the decisions differ; the message is for the user."""


class Journal:
    """Writes a journal, or continues one. Raises `OSError` if the file cannot be written.

    Without `append`, a journal in `path` is replaced; another file raises `OutputFileError`.

    Only the owner of the file can read it, because it contains all prompts as token ids.
    """

    def __init__(self, path: Path, config: EngineConfig, *, append: bool = False) -> None:
        self._path = path
        if not append and path.is_file() and not _may_replace(path):
            raise OutputFileError(f"{path} exists and is no journal: choose another --journal")
        flags = os.O_RDWR | os.O_CREAT | (0 if append else os.O_TRUNC)
        self._file: BinaryIO = os.fdopen(os.open(path, flags, 0o600), "r+b")
        os.fchmod(self._file.fileno(), 0o600)  # needed if the file existed
        self._file.truncate(self._file.seek(sum(_sizes(path))))
        self._encoder = msgspec.msgpack.Encoder()
        self._frame(msgspec.json.encode(config.flat("json")))

    def write(self, event: Event, now: float, answer: Sequence[Outgoing]) -> None:
        """Append an event and a digest of its decisions; a full disk ends only the journal."""
        if self._file.closed:
            return
        try:
            self._frame(self._encoder.encode(Entry(now, event, digest(answer))))
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


def digest(answer: Sequence[Outgoing]) -> int:
    """A checksum (CRC-32) of the encoded messages."""
    checksum = 0
    for message in answer:
        checksum = zlib.crc32(msgspec.msgpack.encode(message), checksum)
    return checksum


def replay(path: Path) -> int:
    """Pass the events of each engine process to a new scheduler; returns the number of events.

    Raises `JournalError` at the first decision that differs, `OSError` if the file cannot be read.
    """
    scheduler: Scheduler | None = None
    count = 0
    for frame in _records(path):
        if isinstance(frame, EngineConfig):
            scheduler = Scheduler(frame)
            continue
        if scheduler is None:
            break
        count, entry = count + 1, frame
        if digest(scheduler.handle(entry.event, entry.now)) != entry.digest:
            kind = type(entry.event).__name__
            raise JournalError(f"event {count} ({kind} at {entry.now:.6f} s): the decision differs")
    if scheduler is None:
        raise JournalError(_NONE.format(path))
    return count


def entries(path: Path) -> Iterator[Entry]:
    """The events of a journal in order. Raises `JournalError` or `OSError`, like `replay`."""
    return (record for record in _records(path) if isinstance(record, Entry))


def _records(path: Path) -> Iterator[EngineConfig | Entry]:
    decoder = msgspec.msgpack.Decoder(Entry)
    for frame in _frames(path):
        try:
            is_settings = frame.startswith(b"{")
            yield (
                EngineConfig.of(**msgspec.json.decode(frame))
                if is_settings
                else decoder.decode(frame)
            )
        except ValueError as error:
            raise JournalError(_NONE.format(path)) from error


def _frames(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for size in _sizes(path):
            yield file.read(size)[_LENGTH.size :]


def _may_replace(path: Path) -> bool:
    """Whether the file is empty or begins like a journal: a length, then settings as JSON."""
    with path.open("rb") as file:
        head = file.read(_LENGTH.size + 1)
    return not head or head[_LENGTH.size :] == b"{"


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
