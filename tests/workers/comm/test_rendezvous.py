"""The rendezvous: an incarnation of a group meets in a file of its own, without an open port.

Several nodes meet in a store that listens on one address, and begin each epoch with an empty one.
"""

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.schema.nodes import NodesConfig
from daemon.processes.watchdog_file import WatchdogFile
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


class Link:
    """Every node gets the next epoch at once."""

    def __init__(self) -> None:
        self._epochs = count(1)

    def next_epoch(self, beat: Callable[[], None], timeout_s: float) -> int:
        beat()
        assert timeout_s == 5.0
        return next(self._epochs)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[NodesConfig]:
    """Two nodes on free ports of an address of the loopback interface."""
    monkeypatch.setenv(rendezvous.EPOCH, "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"nnodes": 2, "master_addr": "127.0.0.1", "master_port": port - 1}
    return [
        NodesConfig(**common),  # type: ignore[arg-type]
        NodesConfig(**common, node_rank=1, headless=True),  # type: ignore[arg-type]
    ]


def handler_of(config: NodesConfig, folder: Path) -> rendezvous.ManyNodes:
    watchdog_file = WatchdogFile(folder, f"stages {config.node_rank}")
    listener = None if config.node_rank else rendezvous.listen(config)
    link: Any = Link()
    return rendezvous.ManyNodes(watchdog_file, "run", config, link, 5.0, listener)


def test_nodes_meet_in_a_store_on_one_address_with_an_empty_part_for_each_epoch(
    nodes: list[NodesConfig], tmp_path: Path
) -> None:
    before = psutil.Process().net_connections("inet")
    handlers = [handler_of(config, tmp_path) for config in nodes]
    met = [handler.next_rendezvous() for handler in handlers]
    assert [(each.rank, each.world_size) for each in met] == [(0, 2), (1, 2)]
    met[0].store.set("key", "value")
    assert met[1].store.get("key") == b"value"
    assert os.environ[rendezvous.EPOCH] == "1"
    opened = [c for c in psutil.Process().net_connections("inet") if c not in before]
    listening = {c.laddr for c in opened if c.status == psutil.CONN_LISTEN}
    assert listening == {("127.0.0.1", nodes[0].store_port)}
    again = [handler.next_rendezvous() for handler in handlers]
    assert not again[1].store.check(["key"])
    again[1].store.set("key", "another")
    assert again[0].store.get("key") == b"another"


def test_stages_of_several_nodes_meet_in_the_same_store(
    nodes: list[NodesConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    handler = handler_of(nodes[0], tmp_path)
    handler.next_rendezvous()
    timeout = timedelta(seconds=5)
    one, other = [rendezvous.stages_store(config, tmp_path, timeout) for config in nodes]
    one.set("address", "1")
    assert other.get("address") == b"1"
    monkeypatch.setenv(rendezvous.EPOCH, "2")
    assert not rendezvous.stages_store(nodes[1], tmp_path, timeout).check(["address"])
