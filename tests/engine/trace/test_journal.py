"""The journal: a full disk ends it, and its contents can be replayed."""

import json
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from configs.config import EngineConfig
from configs.output_files import OutputFileError
from engine.trace.journal import Journal, entries, replay
from tests.engine.world import World, make_submit


@contextmanager
def disk(num_bytes: int) -> Iterator[None]:
    """Limit the size of files."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.fixture(scope="module")
def world() -> World:
    """Some 100 kB of events."""
    world = World(EngineConfig(), 512)
    for sequence_id in range(40):
        world.submit(make_submit(sequence_id, [1000] * 100 * (sequence_id % 8), 20))
    world.run_dry()
    return world


# The file is written in chunks of 8 KiB: only complete frames count.
@pytest.mark.parametrize("num_bytes", [0, 100, 10_000, 20_001, 50_000])
def test_a_full_disk_ends_the_journal_with_a_log_line_and_it_can_be_replayed(
    num_bytes: int, world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    with disk(num_bytes), Journal(path, EngineConfig()) as journal:
        for now, event, answer in world.events:
            journal.write(event, now, answer)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the journal {path} ends here: ")
    num_kept = len(list(entries(path)))
    assert (num_kept > 0) == (num_bytes > 100)
    assert num_kept < len(world.events)
    if num_kept:
        assert replay(path) == num_kept
    with Journal(path, EngineConfig(), append=True) as journal:
        for now, event, answer in world.events:
            journal.write(event, now, answer)
    assert replay(path) == num_kept + len(world.events)


def test_a_disk_that_is_full_when_the_journal_closes_ends_it_too(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    now, event, answer = world.events[0]
    with disk(0), Journal(path, EngineConfig()) as journal:
        journal.write(event, now, answer)
        assert not caplog.records, "the event is still buffered"
    (record,) = caplog.records
    assert record.getMessage().startswith(f"the journal {path} ends here: ")


def frame(settings: dict[str, Any]) -> bytes:
    """The head of a journal, as each version of tdpipe writes it: flat names and their values."""
    text = json.dumps(settings).encode()
    return struct.pack("<I", len(text)) + text


def test_the_head_has_the_flat_names_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with Journal(path, EngineConfig.of(max_num_seqs=3, prefill_ahead=1)):
        pass
    head = json.loads(path.read_bytes()[4:])
    assert head == EngineConfig.of(max_num_seqs=3, prefill_ahead=1).flat("json")
    assert (head["max_num_seqs"], head["prefill_ahead"], head["model"][:1]) == (3, 1, "/")


def test_a_journal_with_a_head_of_flat_names_is_replayed(world: World, tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(frame({"pipeline_parallel_size": 2, "block_size": 16, "policy": "temporal"}))
    with Journal(path, EngineConfig(), append=True) as journal:
        for now, event, answer in world.events:
            journal.write(event, now, answer)
    whole = path.read_bytes()
    head = frame({"pipeline_parallel_size": 2, "block_size": 16, "policy": "temporal"})
    second = len(head) + 4 + struct.unpack("<I", whole[len(head) : len(head) + 4])[0]
    path.write_bytes(head + whole[second:])  # without the head of the second incarnation
    assert replay(path) == len(world.events)


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("Total Length,Execute Time\n")
    with pytest.raises(OutputFileError, match="no journal"):
        Journal(path, EngineConfig())
    assert path.read_text() == "Total Length,Execute Time\n"
    path.write_bytes(b"")
    for _ in range(2):  # an empty file, and a journal
        with Journal(path, EngineConfig()):
            pass
