"""The router's journal: every event of each core, with a digest of the decisions, for replay.

A process has one core for each set of instances that serve the same models; entries name it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

import msgspec

from configs.output_files import OutputFileError
from configs.schema.router import RouterCoreConfig
from router.decisions.messages import Decision, Event
from wire.journal_file import (
    JournalError,
    JournalFile,
    digest,
    frames,
    may_replace,
    not_a_journal,
    settings_in,
)

MARK = "routing"
"""A setting that only the journals of routers have."""


class Core(Protocol):
    """What decides: `router.decisions.core.RouterCore`."""

    def handle(self, event: Event, now: float) -> Sequence[Decision]:
        """Take an event at `now` (seconds), and decide what follows."""

    def load(self, now: float) -> float | None:
        """The part of what the serving instances can do that online requests take, if known."""


MakeCore = Callable[[RouterCoreConfig], Core]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event as passed to the core of a fleet, and the digest of the resulting decisions."""

    now: float
    fleet: int
    event: Event
    digest: int


class Journal:
    """Writes a journal. Raises `OSError` if the file cannot be written.

    A journal in `path` is replaced; another file raises `OutputFileError`.
    """

    def __init__(self, path: Path, config: RouterCoreConfig) -> None:
        if path.is_file() and not may_replace(path):
            raise OutputFileError(f"{path} exists and is no journal: choose another --journal")
        self._file = JournalFile(path, config.flat("json"))

    def write(self, fleet: int, event: Event, now: float, decisions: Sequence[Decision]) -> None:
        """Append an event and a digest of its decisions; a full disk ends only the journal."""
        self._file.write(Entry(now, fleet, event, digest(decisions)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)


def is_routers(path: Path) -> bool:
    """Whether the file is the journal of a router. Raises `OSError`."""
    try:
        return MARK in (settings_in(next(frames(path), b"")) or {})
    except ValueError:
        return False


def replay(path: Path, make_core: MakeCore) -> int:
    """Pass the events to new cores; returns the number of events.

    Raises `JournalError` at the first decision that differs, `OSError` if the file cannot be read.
    """
    decoder = msgspec.msgpack.Decoder(Entry)
    config: RouterCoreConfig | None = None
    cores: dict[int, Core] = {}
    count = 0
    for frame in frames(path):
        try:
            settings = settings_in(frame)
            if settings is not None:
                config, cores = RouterCoreConfig.of(**settings), {}
                continue
            entry = decoder.decode(frame)
        except ValueError as error:
            raise not_a_journal(path) from error
        if config is None:
            break
        count += 1
        if entry.fleet not in cores:
            cores[entry.fleet] = make_core(config)
        if digest(cores[entry.fleet].handle(entry.event, entry.now)) != entry.digest:
            kind = type(entry.event).__name__
            raise JournalError(f"event {count} ({kind} at {entry.now:.6f} s): the decision differs")
    if config is None:
        raise not_a_journal(path)
    return count
