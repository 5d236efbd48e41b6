"""The launch: a signal that is lost within a fork is sent again; interfaces of nodes."""

import errno
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from configs import loader
from configs.config import Config
from configs.schema.nodes import NodesConfig
from daemon.observability import logs
from daemon.processes import child_process
from workers import stage_restarts


def unraisable(error: BaseException) -> Any:
    """The arguments that Python passes to its hook."""
    return cast(Any, SimpleNamespace(exc_value=error))


def test_a_signal_that_was_swallowed_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sent, has_come = [], threading.Event()

    def kill(pid: int, number: int) -> None:
        sent.append((pid, number))
        has_come.set()

    monkeypatch.setattr("workers.stage_restarts.os.kill", kill)
    stage_restarts.signal_again(unraisable(SignalException("15", signal.SIGTERM)))
    assert has_come.wait(10)
    assert sent == [(os.getpid(), signal.SIGTERM)]


def test_other_errors_are_reported_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    passed_on: list[Any] = []
    monkeypatch.setattr(sys, "__unraisablehook__", passed_on.append)
    other = unraisable(ValueError("no signal"))
    stage_restarts.signal_again(other)
    assert passed_on == [other]


def test_the_interface_is_that_of_the_route_to_the_first_node() -> None:
    config = NodesConfig(nnodes=2, master_addr="127.0.0.1")
    assert stage_restarts.interface_of(config) == stage_restarts.LOOPBACK
    assert (
        stage_restarts.interface_of(config.replaced(node_ip="127.0.0.1")) == stage_restarts.LOOPBACK
    )


def test_an_address_of_no_interface_is_named() -> None:
    config = NodesConfig(nnodes=2, node_ip="203.0.113.9")
    with pytest.raises(OSError, match=r"no interface of this node has the address 203\.0\.113\.9"):
        stage_restarts.interface_of(config)


@pytest.fixture
def lookups(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The errors of the next look-ups of names; then each is that of loopback. Fast intervals."""
    errors: list[Exception] = []

    def fake(*_: object, **__: object) -> list[Any]:
        if errors:
            raise errors.pop(0)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 7))]

    monkeypatch.setattr(socket, "getaddrinfo", fake)
    monkeypatch.setattr(stage_restarts, "INTERVAL_S", 0.001)
    monkeypatch.setattr(stage_restarts, "FIRST_LOG_S", 0.0)
    return errors


UNKNOWN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
UNREACHABLE = OSError(errno.ENETUNREACH, "Network is unreachable")


def follower(**settings: Any) -> Config:
    """The second of two nodes."""
    common = {"nnodes": 2, "node_rank": 1, "headless": True, "cluster_secret": "x" * 16}
    return Config.of(**{"master_addr": "first.test", **common, **settings})


def test_a_name_that_is_not_known_yet_is_waited_for(
    lookups: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    lookups += [UNKNOWN] * 20 + [UNREACHABLE] * 20
    beats: list[None] = []
    stage_restarts.wait_for_route(follower(), lambda: beats.append(None))
    assert not lookups
    assert len(beats) > 1
    (record,) = caplog.records  # and the next one after ten seconds
    assert record.getMessage().startswith("node 1 waits: master_addr first.test is not known yet")


def test_a_name_that_stays_unknown_ends_the_wait_in_one_line(lookups: list[Exception]) -> None:
    lookups += [UNKNOWN] * 100_000
    config = follower(stage_start_timeout=0.05)
    with pytest.raises(TimeoutError) as found:
        stage_restarts.wait_for_route(config, lambda: None)
    lookups.clear()  # the thread ends
    assert str(found.value) == (
        "after 0.05 s (stage_start_timeout): master_addr first.test is not known yet (Name or "
        "service not known)"
    )


def test_a_slow_name_server_does_not_stop_the_beats(
    lookups: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not lookups
    has_beaten = threading.Event()
    fast = socket.getaddrinfo

    def slow(*given: Any, **named: Any) -> Any:
        assert has_beaten.wait(10)
        return fast(*given, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    stage_restarts.wait_for_route(follower(), has_beaten.set)


def test_the_reason_of_a_start_without_a_route_is_reported_in_one_line(
    lookups: list[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logging, "disable", lambda _: None)
    monkeypatch.setattr(logs, "set_up", lambda *_: None)
    monkeypatch.setattr(os, "register_at_fork", lambda **_: None)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    lookups += [UNKNOWN] * 100_000
    loader.save(follower(stage_start_timeout=0.05, runtime_dir=tmp_path), tmp_path)
    assert stage_restarts.main(str(tmp_path), 0) == 1
    failure = child_process.reported_failure(tmp_path)
    assert failure is not None
    assert "first.test is not known yet" in failure
    lookups.clear()
    other = tmp_path / "other"
    other.mkdir()
    loader.save(follower(node_ip="203.0.113.9", runtime_dir=other), other)
    assert stage_restarts.main(str(other), 0) == 1
    assert "203.0.113.9 (--node-ip)" in (child_process.reported_failure(other) or "")


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("127.0.0.1", "master_addr 127.0.0.1: a loopback address"),
        ("first.test", "master_addr first.test is 127.0.0.1 here, a loopback address"),
    ],
)
def test_a_loopback_address_is_warned_of(
    host: str, words: str, lookups: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    assert not lookups
    stage_restarts._warn_of_loopback(NodesConfig(nnodes=2, master_addr=host))
    (record,) = caplog.records
    assert words in record.getMessage()
    assert "/etc/hosts" in record.getMessage()
