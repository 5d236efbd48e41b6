"""The journal records every event, with its time and a digest of the decisions, for replay."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from configs.config import EngineConfig
from configs.output_files import OutputFileError
from engine.scheduler import Outgoing, Scheduler
from wire.journal_file import (
    JournalError,
    JournalFile,
    digest,
    frames,
    may_replace,
    not_a_journal,
    settings_in,
)
from wire.messages import Event


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event as passed to the scheduler, and the digest of the resulting messages."""

    now: float
    event: Event
    digest: int


class Journal:
    """Writes a journal, or continues one. Raises `OSError` if the file cannot be written.

    Without `append`, a journal in `path` is replaced; another file raises `OutputFileError`. The
    file contains all prompts as token ids.
    """

    def __init__(self, path: Path, config: EngineConfig, *, append: bool = False) -> None:
        if not append and path.is_file() and not may_replace(path):
            raise OutputFileError(f"{path} exists and is no journal: choose another --journal")
        self._file = JournalFile(path, config.flat("json"), append=append)

    def write(self, event: Event, now: float, answer: Sequence[Outgoing]) -> None:
        """Append an event and a digest of its decisions; a full disk ends only the journal."""
        self._file.write(Entry(now, event, digest(answer)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)


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
        raise not_a_journal(path)
    return count


def entries(path: Path) -> Iterator[Entry]:
    """The events of a journal in order. Raises `JournalError` or `OSError`, like `replay`."""
    return (record for record in _records(path) if isinstance(record, Entry))


def _records(path: Path) -> Iterator[EngineConfig | Entry]:
    decoder = msgspec.msgpack.Decoder(Entry)
    for frame in frames(path):
        try:
            settings = settings_in(frame)
            yield decoder.decode(frame) if settings is None else EngineConfig.of(**settings)
        except ValueError as error:
            raise not_a_journal(path) from error
