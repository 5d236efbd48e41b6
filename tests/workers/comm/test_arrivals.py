"""Arrivals: each is told once, in the order of its link, and a failure ends the wait."""

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import zmq

from workers.comm.arrivals import Arrivals

PATIENCE_S = 10.0


@pytest.fixture
def arrivals() -> Iterator[Arrivals]:
    """The arrivals on two links."""
    with closing(Arrivals(2)) as arrivals:
        yield arrivals


@pytest.fixture
def quiet() -> Iterator["zmq.Socket[bytes]"]:
    """A socket on which no message arrives."""
    context = zmq.Context()
    socket = context.socket(zmq.PULL)
    yield socket
    context.destroy(linger=0)


def test_an_arrival_wakes_the_stage(arrivals: Arrivals, quiet: "zmq.Socket[bytes]") -> None:
    is_here = threading.Event()
    arrivals.post(1, 7, is_here.wait)  # type: ignore[arg-type]
    assert not arrivals.wait(quiet, 0.05)
    assert not list(arrivals.drain())
    is_here.set()
    assert arrivals.wait(quiet, PATIENCE_S)
    assert list(arrivals.drain()) == [(1, 7)]
    assert not arrivals.wait(quiet, 0)


def test_a_link_that_waits_does_not_delay_another(
    arrivals: Arrivals, quiet: "zmq.Socket[bytes]"
) -> None:
    is_here = threading.Event()
    arrivals.post(0, 1, is_here.wait)  # type: ignore[arg-type]
    arrivals.post(0, 2, lambda: None)
    arrivals.post(1, 1, lambda: None)
    assert arrivals.wait(quiet, PATIENCE_S)
    assert list(arrivals.drain()) == [(1, 1)]
    is_here.set()
    found: list[tuple[int, int]] = []
    while len(found) < 2:
        assert arrivals.wait(quiet, PATIENCE_S)
        found += arrivals.drain()
    assert found == [(0, 1), (0, 2)]


def test_what_has_arrived_already_is_told_at_once(
    arrivals: Arrivals, quiet: "zmq.Socket[bytes]"
) -> None:
    arrivals.post(0, 3, None)
    assert arrivals.wait(quiet, PATIENCE_S)
    assert list(arrivals.drain()) == [(0, 3)]


def test_a_failure_is_raised_in_the_stage_s_thread(
    arrivals: Arrivals, quiet: "zmq.Socket[bytes]"
) -> None:
    def fail() -> None:
        raise RuntimeError("the neighbour is gone")

    arrivals.post(0, 1, lambda: None)
    arrivals.post(0, 2, fail)
    with pytest.raises(RuntimeError, match="the neighbour is gone"):
        drain_for_ever(arrivals, quiet)


def drain_for_ever(arrivals: Arrivals, quiet: "zmq.Socket[bytes]") -> None:
    """Until nothing arrives."""
    while arrivals.wait(quiet, PATIENCE_S):
        for arrival in arrivals.drain():
            assert arrival == (0, 1)
