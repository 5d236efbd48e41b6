"""Stage time: busy and bubble seconds add up to the time with work, and switches have a cost."""

from array import array
from collections import deque
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.scheduler import InFlight, Pipeline
from engine.stage_time import StageTime
from wire.histogram import HistogramFigures
from wire.messages import Heartbeat, Phase


class Run:
    """A pipeline of two stages, by default, whose steps are launched, run and returned by hand."""

    def __init__(self, num_stages: int = 2, *, same_host: bool = True, num_slices: int = 1) -> None:
        self.time = StageTime(num_stages, same_host=same_host, num_slices=num_slices)
        self.in_flight: deque[InFlight] = deque()
        self.epoch = 1
        self._num_steps = 0

    def launch(self, now: float, phase: Phase = "prefill") -> None:
        """Launch the next step."""
        self.in_flight.append(InFlight(self._num_steps, [], [], [], 0, phase))
        self._num_steps += 1
        self.follow(now)

    def complete(self, now: float, launches: Phase | None = None) -> None:
        """The oldest step returns, and maybe another one is launched by the same event."""
        self.in_flight.popleft()
        if launches is None:
            self.follow(now)
        else:
            self.launch(now, launches)

    def follow(self, now: float) -> None:
        """An event without a step."""
        pipeline = SimpleNamespace(epoch=self.epoch, in_flight=self.in_flight)
        self.time.follow(cast(Pipeline, pipeline), now)

    def lose(self, now: float) -> None:
        """The stages are lost, and restart."""
        self.time.follow(None, now)
        self.in_flight.clear()
        self.epoch += 1

    def report(self, stage: int, first_id: int, *spans: tuple[float, float], **more: Any) -> None:
        """A heartbeat with the begin and end of consecutive steps."""
        step_ids = array("q", range(first_id, first_id + len(spans)))
        began_at = array("d", [began for began, _ in spans])
        ended_at = array("d", [ended for _, ended in spans])
        columns = {"step_ids": step_ids, "began_at": began_at, "ended_at": ended_at}
        packed: dict[str, Any] = {name: column.tobytes() for name, column in columns.items()}
        beat = Heartbeat(stage, self.epoch, 1, 0, 0, 0.0, **packed, **more)
        self.time.observe(beat, beat.sent_at)


def costs(run: Run, to: Phase) -> HistogramFigures:
    """The costs of the switches to a phase."""
    return run.time.switch_costs[to].figures()


def test_a_stage_that_does_not_compute_while_a_step_is_in_flight_has_a_bubble() -> None:
    run = Run()
    run.launch(10.0)
    run.launch(10.0)
    run.complete(15.0)
    run.complete(17.0)
    run.report(0, 0, (10.5, 12.0), (12.0, 14.0))
    run.report(1, 0, (12.5, 14.5), (15.0, 16.5))
    assert run.time.busy_s == [3.5, 3.5]
    assert run.time.bubble_s == [3.5, 3.5]  # 7 s with a step in flight: fill, gaps and drain
    assert run.time.steps == [2, 2]


def test_time_without_work_is_no_bubble() -> None:
    run = Run(1)
    for began_at in (0.0, 1000.0):
        run.launch(began_at)
        run.report(0, int(began_at > 0), (began_at + 1.0, began_at + 2.0))
        run.complete(began_at + 2.25)
    assert (run.time.busy_s, run.time.bubble_s) == ([2.0], [2.5])


def test_with_virtual_stages_a_step_is_reported_for_each_slice() -> None:
    run = Run(1, num_slices=2)
    run.launch(0.0)
    run.launch(0.0)
    for step_id, began_at in ((0, 1.0), (1, 2.0), (0, 4.0)):
        run.report(0, step_id, (began_at, began_at + 1.0))
    assert run.time.steps == [1]
    run.complete(5.5)
    run.complete(7.0)
    assert (run.time.busy_s, run.time.bubble_s) == ([3.0], [1.0 + 1.0])  # the drain is not known
    run.report(0, 1, (5.0, 6.0))
    assert (run.time.busy_s, run.time.bubble_s) == ([4.0], [3.0])  # 7 s with a step in flight
    assert run.time.steps == [2]


def test_with_virtual_stages_a_switch_costs_the_bubbles_before_all_slices_of_its_steps() -> None:
    run = Run(2, num_slices=2)
    run.launch(0.0)
    run.launch(0.0, "decode")
    run.launch(0.0, "decode")
    for stage in (0, 1):
        at = float(stage)
        for step_id in (0, 0, 1, 2, 1, 2):
            at += 0.5 if step_id else 0.0
            run.report(stage, step_id, (at, at + 1.0))
            at += 1.0
    figures = costs(run, "decode")
    assert sum(figures.counts) == 1
    assert figures.total == 4 * 0.5


def test_reports_may_come_late_and_in_pieces() -> None:
    """A heartbeat may report steps of several work periods, or only some of one."""
    run = Run(1)
    for began_at in (0.0, 100.0, 200.0):
        run.launch(began_at)
        run.complete(began_at + 3.0)
    run.launch(300.0)
    run.report(0, 0, (1.0, 2.0), (101.0, 102.0))
    assert run.time.bubble_s == [4.0]
    run.report(0, 2, (201.0, 202.0), (301.0, 302.0))
    assert run.time.bubble_s == [7.0]  # the last period goes on: its drain is not known
    run.complete(302.5)
    assert (run.time.busy_s, run.time.bubble_s) == ([4.0], [7.5])


def test_a_lost_report_leaves_a_gap_that_is_neither_busy_nor_a_bubble() -> None:
    run = Run(1)
    for now in (0.0, 1.0, 2.0):
        run.launch(now)
    run.report(0, 0, (0.0, 1.0))
    run.report(0, 2, (2.0, 3.0))
    assert (run.time.busy_s, run.time.bubble_s, run.time.steps) == ([2.0], [0.0], [2])


def test_steps_of_lost_stages_are_not_counted_and_their_epoch_is_over() -> None:
    run = Run(1)
    run.launch(0.0)
    run.launch(0.0)
    run.report(0, 0, (1.0, 2.0))
    run.lose(5.0)
    run.launch(100.0)
    late = run.epoch
    run.epoch -= 1
    run.report(0, 1, (2.0, 4.0))
    run.epoch = late
    run.report(0, 2, (101.0, 102.0))
    run.complete(102.0)
    assert (run.time.busy_s, run.time.bubble_s) == ([2.0], [2.0])
    assert run.time.phase_s(200.0)["prefill"] == 7.0


def test_a_group_that_is_replaced_within_one_event_is_lost_too() -> None:
    run = Run(1)
    run.launch(0.0)
    run.in_flight.clear()
    run.epoch += 1
    run.launch(4.0)
    run.report(0, 1, (5.0, 6.0))
    run.complete(6.0)
    assert (run.time.busy_s, run.time.bubble_s) == ([1.0], [1.0])


def test_phase_seconds_are_those_with_a_step_in_flight_by_the_newest_step() -> None:
    run = Run(1)
    run.launch(1.0, "prefill")
    run.complete(3.0, launches="decode")
    run.complete(8.0, launches="decode")
    assert run.time.phase_s(9.0) == {"prefill": 2.0, "decode": 6.0, "mixed": 0.0}
    run.complete(10.0)
    run.follow(50.0)
    assert run.time.phase_s(60.0) == {"prefill": 2.0, "decode": 7.0, "mixed": 0.0}


def test_a_switch_costs_the_bubbles_of_its_first_pipeline_turn() -> None:
    """Two stages: the cost is the mean over them, of the two steps after the switch."""
    run = Run()
    for phase in ("decode", "prefill", "prefill", "prefill"):
        run.launch(0.0, phase)
    run.report(0, 0, (0.0, 1.0), (1.5, 4.0), (4.25, 6.0), (6.5, 9.0))
    assert costs(run, "prefill").total == 0.0
    run.report(1, 0, (1.0, 2.0), (4.0, 7.0), (7.0, 9.0), (9.5, 12.0))
    # Stage 0: 0.5 + 0.25, and stage 1: 2.0 + 0.0; the third step is no longer part of it.
    assert costs(run, "prefill").total == pytest.approx((0.75 + 2.0) / 2)
    assert sum(costs(run, "prefill").counts) == 1
    assert sum(costs(run, "decode").counts) == 0


def test_a_phase_that_is_shorter_than_a_turn_has_a_cost_too() -> None:
    run = Run()
    for phase in ("decode", "prefill", "decode"):
        run.launch(0.0, phase)
    run.report(0, 0, (0.0, 1.0), (2.0, 3.0), (3.5, 4.0))
    run.report(1, 0, (1.0, 2.0), (3.0, 4.0), (4.0, 5.0))
    assert costs(run, "prefill").total == pytest.approx((1.0 + 1.0) / 2)
    assert sum(costs(run, "decode").counts) == 0  # its turn is not over
    for _ in range(3):
        run.complete(6.0)
    assert costs(run, "decode").total == pytest.approx(0.5 / 2)


def test_the_first_phase_after_idle_time_is_no_switch() -> None:
    run = Run(1)
    run.launch(0.0, "decode")
    run.complete(1.0)
    run.launch(10.0, "prefill")
    run.report(0, 0, (0.0, 1.0), (12.0, 13.0))
    run.complete(13.0)
    assert sum(costs(run, "prefill").counts) == 0


def test_the_clock_of_another_host_is_corrected() -> None:
    run = Run(1, same_host=False)
    run.launch(5000.0)
    beat = Heartbeat(0, 1, 1, 0, 0, 0.0, sent_at=100.0)
    run.time.observe(beat, 5000.0)  # that host's clock is 4900 s behind
    step = {"step_ids": array("q", [0]), "began_at": array("d", [101.0])}
    packed = {name: column.tobytes() for name, column in step.items()}
    ended_at = array("d", [103.0]).tobytes()
    run.time.observe(Heartbeat(0, 1, 1, 0, 1, 2.0, 104.0, **packed, ended_at=ended_at), 5004.0)
    run.complete(5003.5)
    assert run.time.busy_s == [2.0]
    assert run.time.bubble_s == pytest.approx([1.5])
