"""Recent steps: what the stages ran in the last 30 s, for whoever watches the pipeline.

Nobody watches most of the time, so a step costs four stores here, and a heartbeat one append. Steps
and reports are joined only when somebody asks.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from engine.clock_leads import ClockLeads
from wire.messages import PHASES, Heartbeat, ReportedSteps, Step

KEPT_S = 30.0
# Launched steps kept, a power of two: 30 s of steps of 1 ms.
MAX_STEPS = 1 << 15
_PHASE_NUMBERS = {phase: number for number, phase in enumerate(PHASES)}


@dataclass(frozen=True, slots=True)
class _Report:
    """A heartbeat with steps, and how far our clock is ahead of its clock."""

    number: int
    received_at: float
    beat: Heartbeat
    lead_s: float


class RecentSteps:
    """Call `launch` with each step that is sent, and `observe` with each heartbeat.

    Times (`now`, in seconds) are of the engine's clock; those of an answer are since `began_at`.
    """

    def __init__(self, began_at: float, *, same_host: bool) -> None:
        self._began_at = began_at
        self._leads = ClockLeads(same_host=same_host)
        self._num_reports = 0
        self._reports: deque[_Report] = deque()
        # The step with an id is at the index id % MAX_STEPS.
        self._ids = np.full(MAX_STEPS, -1, np.int64)
        self._phases = np.zeros(MAX_STEPS, np.uint8)
        self._rows, self._tokens = np.zeros((2, MAX_STEPS), np.int32)

    def launch(self, step: Step) -> None:
        """Keep the phase and the size of a step."""
        i = step.step_id % MAX_STEPS
        self._ids[i], self._phases[i] = step.step_id, _PHASE_NUMBERS[step.phase]
        self._rows[i], self._tokens[i] = len(step.sequence_ids) // 8, len(step.token_ids) // 4

    def observe(self, beat: Heartbeat, now: float) -> None:
        """Keep a report, and forget those that are too old."""
        lead_s = self._leads.lead_s(beat, now)
        if beat.step_ids:
            self._num_reports += 1
            self._reports.append(_Report(self._num_reports, now, beat, lead_s))
            self._forget(now)

    def after(self, number: int, now: float) -> ReportedSteps:
        """The steps in the reports after this number."""
        self._forget(now)
        columns = [self._columns(each) for each in self._reports if each.number > number]
        joined = map(np.concatenate, zip(*columns, strict=True)) if columns else [np.empty(0)] * 7
        return ReportedSteps(number, self._num_reports, *(column.tobytes() for column in joined))

    def _forget(self, now: float) -> None:
        while self._reports and self._reports[0].received_at < now - KEPT_S:
            self._reports.popleft()

    def _columns(self, report: _Report) -> tuple[np.ndarray, ...]:
        """The columns of a `ReportedSteps`, without steps that are no longer known."""
        beat = report.beat
        step_ids = np.frombuffer(beat.step_ids, np.int64)
        places = step_ids % MAX_STEPS
        is_known = self._ids[places] == step_ids
        step_ids, places = step_ids[is_known], places[is_known]
        shift_s = report.lead_s - self._began_at
        return (
            np.full(len(step_ids), beat.stage, np.int32),
            step_ids,
            self._phases[places],
            self._rows[places],
            self._tokens[places],
            np.frombuffer(beat.began_at)[is_known] + shift_s,
            np.frombuffer(beat.ended_at)[is_known] + shift_s,
        )
