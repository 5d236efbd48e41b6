"""The journal: a full disk ends it, and its contents can be replayed."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from configs.schema import EngineConfig
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
