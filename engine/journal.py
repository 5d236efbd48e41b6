"""The journal: every event with its time and a digest of the decisions; replay proves them equal.

A file of length-prefixed MessagePack frames: first the settings, then one `Entry` per event.
A journal cut short by a crash is read up to its last whole frame.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Self

import msgspec

from configs.schema import EngineConfig
from engine.messages import Event
from engine.scheduler import Outgoing, Scheduler

_LENGTH = struct.Struct("<I")


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event as the scheduler was handed it, and the digest of what it answered."""

    now: float
    event: Event
    digest: int


class JournalError(Exception):
    """The file is no journal, or the decisions differ; the text is for the user."""


class Journal:
    """Writes a journal. Raises `OSError` when the file cannot be written."""

    def __init__(self, path: Path, config: EngineConfig) -> None:
        self._file: BinaryIO = path.open("wb")
        self._encoder = msgspec.msgpack.Encoder()
        settings = EngineConfig.model_validate(
            config.model_dump(include=set(EngineConfig.model_fields))
        )
        self._frame(settings.model_dump_json().encode())

    def write(self, event: Event, now: float, answer: Sequence[Outgoing]) -> None:
        """Add one event and what came of it."""
        self._frame(self._encoder.encode(Entry(now, event, digest(answer))))

    def _frame(self, payload: bytes) -> None:
        self._file.write(_LENGTH.pack(len(payload)) + payload)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def digest(answer: Sequence[Outgoing]) -> int:
    """A checksum of the messages as they would be sent."""
    checksum = 0
    for message in answer:
        checksum = zlib.crc32(msgspec.msgpack.encode(message), checksum)
    return checksum


def replay(path: Path) -> int:
    """Hand the journal's events to a new scheduler; the number of events.

    Raises `JournalError` at the first decision that differs, `OSError` when it cannot be read.
    """
    frames = _frames(path)
    try:
        config = EngineConfig.model_validate_json(next(frames, b""))
    except ValueError as error:
        raise JournalError(f"{path} is not a journal of this version") from error
    scheduler = Scheduler(config)
    decoder = msgspec.msgpack.Decoder(Entry)
    count = 0
    for count, frame in enumerate(frames, start=1):
        entry = decoder.decode(frame)
        if digest(scheduler.handle(entry.event, entry.now)) != entry.digest:
            kind = type(entry.event).__name__
            raise JournalError(f"event {count} ({kind} at {entry.now:.6f} s) is decided otherwise")
    return count


def entries(path: Path) -> Iterator[Entry]:
    """The journal's events in order. Raises `OSError` when it cannot be read."""
    decoder = msgspec.msgpack.Decoder(Entry)
    frames = _frames(path)
    next(frames, b"")
    for frame in frames:
        yield decoder.decode(frame)


def _frames(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while len(prefix := file.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(prefix)
            if len(frame := file.read(length)) < length:
                return
            yield frame
