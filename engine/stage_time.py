"""Stage time: the busy and bubble seconds of each stage, phase seconds, and what switches cost.

A work period begins when a step is launched into an empty pipeline, and ends when no step is in
flight. While sequences are open and the stages are ready, a step is in flight, so a work period is
the time in which work exists. Within it, a stage is either busy with a step or it has a bubble, so
the two add up to the period:

    period    |---------------------------------------------|
    stage 0   |-|===step 0===|===step 1===|--------|==2==|--|
    stage 1   |--------------|===step 0===|===step 1===|-|==|

With virtual stages, a stage reports a step once for each of its slices, in the order in which it
ran them; the last slice of the last step ends the period.

Time without work is no bubble. A switch costs the bubbles before the first S steps of the new phase
(a pipeline turn), as the mean over the S stages.

The seconds are those that the stages report with their heartbeats, so they lag by up to one. A step
of which a stage was lost is not counted.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile

from engine.clock_leads import ClockLeads
from engine.scheduler import InFlight, Pipeline
from wire.histogram import SWITCH_S, Histogram
from wire.messages import Heartbeat, Phase

# Launched steps kept until all stages report them; a heartbeat that got lost never reports its own.
MAX_OPEN_STEPS = 10_000


@dataclass(slots=True)
class _Period:
    """A work period; `last_step_id` and `ended_at` are unknown (-1 and infinite) until its end."""

    began_at: float
    last_step_id: int = -1
    ended_at: float = float("inf")


@dataclass(slots=True)
class _Switch:
    """A phase switch, until all stages have reported the first steps after it."""

    to: Phase
    bubble_s: float = 0.0
    num_steps: int = 0
    num_reports: int = 0
    is_complete: bool = False  # whether no more steps belong to it


@dataclass(slots=True)
class _OpenStep:
    """A step that not all stages have reported; `switch` if it is among the first after one.

    `missing` counts the reports that are missing, of each stage.
    """

    period: _Period
    switch: _Switch | None
    missing: list[int]


@dataclass(slots=True)
class _Reported:
    """The last step that a stage has reported; `is_whole` if it has reported all slices."""

    period: _Period
    step_id: int
    ended_at: float
    is_whole: bool


class StageTime:
    """Call `follow` after each event of the scheduler, and `observe` with each heartbeat.

    `busy_s`, `bubble_s` and `steps` have an entry per stage. All are counters.
    """

    def __init__(self, num_stages: int, *, same_host: bool, num_slices: int = 1) -> None:
        self.busy_s = [0.0] * num_stages
        self.bubble_s = [0.0] * num_stages
        self.steps = [0] * num_stages
        self.switch_costs: dict[Phase, Histogram] = {
            "prefill": Histogram(SWITCH_S),
            "decode": Histogram(SWITCH_S),
        }
        self._num_stages, self._num_slices = num_stages, num_slices
        self._leads = ClockLeads(same_host=same_host)
        self._phase_s: dict[Phase, float] = {"prefill": 0.0, "decode": 0.0, "mixed": 0.0}
        self._phase: Phase = "prefill"
        self._phase_since = 0.0
        self._epoch, self._next_step_id = 0, 0
        self._period: _Period | None = None
        self._switch: _Switch | None = None
        self._steps: dict[int, _OpenStep] = {}
        self._reported: list[_Reported | None] = [None] * num_stages

    def follow(self, pipeline: Pipeline | None, now: float) -> None:
        """Take note of the steps in flight after an event at `now` (seconds)."""
        if pipeline is None or pipeline.epoch != self._epoch:
            self._lose(now)
        if pipeline is None:
            return
        self._epoch = pipeline.epoch
        for step in _newer(pipeline.in_flight, self._next_step_id):
            self._launch(step, now)
        if not pipeline.in_flight and self._period is not None:
            self._end_period(self._period, now)

    def observe(self, beat: Heartbeat, now: float) -> None:
        """Count the steps that a heartbeat, received at `now`, reports."""
        if beat.epoch != self._epoch:
            return
        lead_s = self._leads.lead_s(beat, now)
        step_ids = memoryview(beat.step_ids).cast("q")
        times = memoryview(beat.began_at).cast("d"), memoryview(beat.ended_at).cast("d")
        for step_id, began_at, ended_at in zip(step_ids, *times, strict=True):
            step = self._steps.get(step_id)
            if step is not None:
                self._count(beat.stage, step_id, step, began_at + lead_s, ended_at + lead_s)
        self._end_reports(beat.stage)

    def phase_s(self, now: float) -> dict[Phase, float]:
        """The seconds of work periods by the phase of the policy, until `now`."""
        seconds = dict(self._phase_s)
        if self._period is not None:
            seconds[self._phase] += now - self._phase_since
        return seconds

    def _launch(self, step: InFlight, now: float) -> None:
        if self._period is None:
            self._period = _Period(now)
            self._phase, self._phase_since, self._switch = step.phase, now, None
        elif step.phase != self._phase:
            self._end_phase(now)
            self._phase, self._switch = step.phase, _Switch(step.phase)
        switch = self._switch
        if switch is not None:
            switch.num_steps += 1
            if switch.num_steps == self._num_stages:
                self._end_switch()
        self._steps[step.step_id] = _OpenStep(
            self._period, switch, [self._num_slices] * self._num_stages
        )
        if len(self._steps) > MAX_OPEN_STEPS:
            del self._steps[next(iter(self._steps))]
        self._next_step_id = step.step_id + 1

    def _count(
        self, stage: int, step_id: int, step: _OpenStep, began_at: float, ended_at: float
    ) -> None:
        last = self._reported[stage]
        if last is not None and last.period is not step.period:
            self._end_reports(stage)
            last = None
        since = step.period.began_at if last is None else last.ended_at
        # With virtual stages the order is not known: a heartbeat that got lost counts as a bubble.
        is_next = last is None or self._num_slices > 1 or step_id == last.step_id + 1
        bubble_s = max(0.0, began_at - since) if is_next else 0.0
        self.busy_s[stage] += ended_at - began_at
        self.bubble_s[stage] += bubble_s
        step.missing[stage] -= 1
        is_whole = not step.missing[stage]
        self.steps[stage] += is_whole
        self._reported[stage] = _Reported(step.period, step_id, ended_at, is_whole)
        if step.switch is not None:
            self._count_switch(step.switch, bubble_s)
        if not any(step.missing):
            del self._steps[step_id]

    def _count_switch(self, switch: _Switch, bubble_s: float) -> None:
        switch.bubble_s += bubble_s
        switch.num_reports += 1
        self._settle(switch)

    def _settle(self, switch: _Switch) -> None:
        """Record the cost of a switch once all stages have reported all of its steps."""
        num_reports = switch.num_steps * self._num_stages * self._num_slices
        is_reported = switch.num_reports == num_reports
        if switch.is_complete and is_reported and switch.to in self.switch_costs:
            self.switch_costs[switch.to].observe(switch.bubble_s / self._num_stages)

    def _end_switch(self) -> None:
        """No further step belongs to the last switch."""
        if self._switch is not None:
            self._switch.is_complete = True
            self._settle(self._switch)
            self._switch = None

    def _end_phase(self, now: float) -> None:
        self._phase_s[self._phase] += now - self._phase_since
        self._phase_since = now
        self._end_switch()

    def _end_period(self, period: _Period, now: float) -> None:
        self._end_phase(now)
        period.last_step_id, period.ended_at = self._next_step_id - 1, now
        self._period = None
        for stage in range(self._num_stages):
            self._end_reports(stage)

    def _end_reports(self, stage: int) -> None:
        """Count the bubble from the last step of a period to its end, if both are known."""
        last = self._reported[stage]
        if last is None or not last.is_whole:
            return
        if last.step_id == last.period.last_step_id:
            self.bubble_s[stage] += max(0.0, last.period.ended_at - last.ended_at)
            self._reported[stage] = None

    def _lose(self, now: float) -> None:
        """Forget the steps of a lost pipeline, which no stage will report."""
        if self._period is not None:
            self._phase_s[self._phase] += now - self._phase_since
        self._period = self._switch = None
        self._steps.clear()
        self._reported = [None] * self._num_stages


def _newer(in_flight: deque[InFlight], first_id: int) -> Iterable[InFlight]:
    """The steps in flight from `first_id` on, the oldest first; usually there is one."""
    newer = list(takewhile(lambda step: step.step_id >= first_id, reversed(in_flight)))
    return reversed(newer)
