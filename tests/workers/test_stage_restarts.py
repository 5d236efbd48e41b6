"""The launch: a signal that is lost within a fork is sent again; interfaces of nodes."""

import os
import signal
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from torch.distributed.elastic.multiprocessing.api import SignalException

from configs.schema.nodes import NodesConfig
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
