"""The rendezvous: an incarnation of a group meets in a file of its own, without an open port."""

import os
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from daemon.watchdog_file import WatchdogFile
from workers.comm import rendezvous


@pytest.fixture
def incarnation(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment that torchrun gives the only stage of a group in its first incarnation."""
    environment = {
        "TORCHELASTIC_RUN_ID": "run",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": "1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_torchrun_meets_itself_at_once_and_listens_nowhere(tmp_path: Path) -> None:
    watchdog_file = WatchdogFile(tmp_path, "stages")
    handler = rendezvous.OneHost(watchdog_file, "run")
    before = psutil.Process().net_connections("inet")
    for _ in range(2):  # a restarted group meets again
        met = handler.next_rendezvous()
        assert (met.rank, met.world_size) == (0, 1)
        met.store.set("key", "value")
        assert met.store.get("key") == b"value"
    (file,) = tmp_path.iterdir()
    os.utime(file, (0, 0))
    assert handler.num_nodes_waiting() == 0
    assert file.stat().st_mtime > 0
    assert handler.get_run_id() == "run"
    assert psutil.Process().net_connections("inet") == before


def test_an_incarnation_does_not_read_what_another_has_left(
    incarnation: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    timeout = timedelta(milliseconds=50)
    first = rendezvous.group_store(tmp_path, timeout)
    first.set("address", "of a stage that is gone")
    incarnation.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    second = rendezvous.group_store(tmp_path, timeout)
    with pytest.raises(RuntimeError):
        second.get("address")


def test_a_store_is_not_waited_for_for_ever(
    incarnation: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert incarnation
    store = rendezvous.group_store(tmp_path, timedelta(milliseconds=50))
    assert store.timeout == timedelta(milliseconds=50)
    with pytest.raises(RuntimeError):
        store.wait(["never"])


@pytest.mark.usefixtures("incarnation")
def test_files_of_ended_groups_are_removed(tmp_path: Path) -> None:
    rendezvous.group_store(tmp_path, timedelta(seconds=1)).set("key", "value")
    other = tmp_path / "settings.json"
    other.touch()
    rendezvous.forget_groups(tmp_path)
    assert [*tmp_path.iterdir()] == [other]
