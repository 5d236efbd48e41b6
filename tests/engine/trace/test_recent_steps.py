"""Recent steps: what the stages ran lately, joined only for those who ask."""

from array import array

import numpy as np

from engine.trace import recent_steps
from engine.trace.recent_steps import KEPT_S, RecentSteps
from tests.engine.trace.test_recorder import make_beat, make_step
from wire.messages import PHASES, ReportedSteps

BEGAN_AT = 1000.0


def rows_of(answer: ReportedSteps) -> list[tuple[object, ...]]:
    """Stage, step, phase, rows, tokens, begin and end of each entry."""
    columns = (
        array("i", answer.stages),
        array("q", answer.step_ids),
        [PHASES[number] for number in answer.phases],
        array("i", answer.num_rows),
        array("i", answer.num_tokens),
        np.frombuffer(answer.began_at).round(6).tolist(),
        np.frombuffer(answer.ended_at).round(6).tolist(),
    )
    return list(zip(*columns, strict=True))


def make(*, same_host: bool = True) -> RecentSteps:
    return RecentSteps(BEGAN_AT, same_host=same_host)


def test_each_report_of_a_step_has_its_phase_and_size_and_the_time_since_the_engine_began() -> None:
    steps = make()
    steps.launch(make_step(7, "prefill", 3))
    steps.observe(make_beat(0, {7: (1001.0, 1002.0)}), 1003.0)
    steps.observe(make_beat(1, {7: (1002.5, 1003.0)}), 1003.5)
    assert rows_of(steps.after(0, 1004.0)) == [
        (0, 7, "prefill", 3, 6, 1.0, 2.0),
        (1, 7, "prefill", 3, 6, 2.5, 3.0),
    ]


def test_who_has_asked_before_gets_only_what_is_new() -> None:
    steps = make()
    for step_id in (7, 8):
        steps.launch(make_step(step_id))
    steps.observe(make_beat(0, {7: (1001.0, 1002.0)}), 1003.0)
    first = steps.after(0, 1003.0)
    assert (first.after, len(rows_of(first))) == (0, 1)
    nothing = steps.after(first.newest, 1003.0)
    assert (nothing.after, nothing.newest, rows_of(nothing)) == (first.newest, first.newest, [])
    steps.observe(make_beat(0, {8: (1002.0, 1003.0)}), 1003.2)
    assert [row[1] for row in rows_of(steps.after(first.newest, 1003.5))] == [8]


def test_reports_are_forgotten_after_a_while() -> None:
    steps = make()
    for step_id in (7, 8):
        steps.launch(make_step(step_id))
    steps.observe(make_beat(0, {7: (1001.0, 1002.0)}), 1002.0)
    steps.observe(make_beat(0, {8: (1009.0, 1010.0)}), 1010.0)
    assert [row[1] for row in rows_of(steps.after(0, 1003.0 + KEPT_S))] == [8]
    steps.observe(make_beat(0, {8: (1009.0, 1010.0)}), 1011.0 + KEPT_S)
    assert len(steps._reports) == 1


def test_steps_that_were_overwritten_or_never_launched_here_are_left_out() -> None:
    steps = make()
    later = 7 + recent_steps.MAX_STEPS  # is kept in the place of 7
    for step_id in (7, later):
        steps.launch(make_step(step_id))
    times = dict.fromkeys((7, 9, later), (1001.0, 1002.0))
    steps.observe(make_beat(0, times), 1003.0)
    assert [row[1] for row in rows_of(steps.after(0, 1003.0))] == [later]


def test_the_clock_of_another_host_is_set_by_its_heartbeats_also_without_steps() -> None:
    steps = make(same_host=False)
    steps.launch(make_step(7))
    steps.observe(make_beat(0, {}, sent_at=101.5), 1001.5)
    steps.observe(make_beat(0, {7: (101.6, 101.9)}, sent_at=102.0), 1002.03)
    ((_, _, _, _, _, began_at, ended_at),) = rows_of(steps.after(0, 1002.5))
    assert (began_at, ended_at) == (1.6, 1.9)
