"""The first node names a node that gave up or left, and only then."""

import pytest

from doctor.attendance import GONE_S, Attendance
from wire.messages import NodeState
from workers.comm.node_link import REFUSAL_S

STEP_S = 0.25


def state(node: int, instance: int = 1) -> NodeState:
    return NodeState(node, instance, f"host{node}", 1, 1, 0, {}, None)


def tell(attendance: Attendance, node: int, begin: float, end: float, refusal: str = "") -> None:
    """The node tells its state four times a second."""
    for i in range(round((end - begin) / STEP_S)):
        attendance.take(state(node), refusal, begin + i * STEP_S)


def met() -> Attendance:
    """Three nodes have met at 0.0."""
    attendance = Attendance()
    for node in range(3):
        attendance.take(state(node), "", 0.0)
    attendance.begin()
    return attendance


def test_a_node_that_was_refused_until_it_gave_up_is_told_after_it_has_ended() -> None:
    attendance = Attendance()
    tell(attendance, 1, 0.0, REFUSAL_S, "another model")
    assert not attendance.problem(REFUSAL_S + 0.5)
    assert attendance.problem(REFUSAL_S + 3.0) == "another model"


@pytest.mark.parametrize("end", [1.0, REFUSAL_S])
def test_a_node_that_was_corrected_is_welcome(end: float) -> None:
    """Whether it was stopped before it gave up, or after."""
    attendance = Attendance()
    tell(attendance, 1, 0.0, end, "another model")
    tell(attendance, 1, end + 1.0, end + 2.0)
    assert not attendance.problem(60.0)


def test_a_node_that_was_stopped_before_it_gave_up_is_waited_for() -> None:
    attendance = Attendance()
    tell(attendance, 1, 0.0, 1.0, "another model")
    assert not attendance.problem(60.0)
    tell(attendance, 1, 60.0, 61.0, "another dtype")
    assert not attendance.problem(61.0)


def test_a_stray_node_that_comes_after_they_met_is_ignored() -> None:
    """One with a rank beyond the number of nodes: it is refused, and has no part in the checks."""
    attendance = met()
    for node in range(3):
        tell(attendance, node, 0.0, GONE_S)
    tell(attendance, 7, 0.0, GONE_S, "--node-rank 7 of 3 nodes")
    assert not attendance.problem(GONE_S)


def test_a_silent_node_has_left() -> None:
    attendance = met()
    tell(attendance, 0, 0.0, 2 * GONE_S)
    tell(attendance, 1, 0.0, 2 * GONE_S)
    assert not attendance.problem(GONE_S - 0.5)
    assert attendance.problem(2 * GONE_S).startswith("node 2 has left")


def test_a_node_that_was_started_again_has_left_the_meeting() -> None:
    attendance = met()
    attendance.take(state(1, instance=2), "", 1.0)
    assert attendance.problem(1.0).startswith("node 1 has left")


def test_before_the_meeting_a_node_may_be_started_again() -> None:
    attendance = Attendance()
    attendance.take(state(1), "", 0.0)
    attendance.take(state(1, instance=2), "", 60.0)
    assert not attendance.problem(61.0)
    attendance.begin()
    assert not attendance.problem(61.0)
