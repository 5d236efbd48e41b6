"""The recorder: writes a trace of the launched steps and the times that stages report."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from configs.output_files import check_outputs
from engine.clock_leads import ClockLeads
from engine.trace.trace_file import TRACE_MARK, Gauges, Span, TraceWriter
from wire.messages import EngineReady, Heartbeat, Message, Phase, StageLost, Stats, Step

# Launched steps kept until all stages report them; steps of a lost pipeline are never reported.
MAX_OPEN_STEPS = 10_000


@dataclass(slots=True)
class _OpenStep:
    """A step that not all virtual stages have reported yet."""

    phase: Phase
    num_rows: int
    num_tokens: int
    reports_missing: int


class Recorder:
    """Writes the trace of one engine process. Every method may raise `OSError`.

    A trace in `path` is replaced; another file there raises `OutputFileError`.

    Times (`now`, in seconds) are read from the engine's monotonic clock and written as seconds
    since `began_at`. Stages on the `same_host` have the same clock; see `ClockLeads` for others.
    """

    def __init__(
        self,
        path: Path,
        num_stages: int,
        began_at: float,
        *,
        same_host: bool,
        num_slices: int = 1,
    ) -> None:
        """Each stage reports a step `num_slices` times, for each of its virtual stages."""
        check_outputs({path: TRACE_MARK}, advice="choose another --trace")
        self.path, self._writer = path, TraceWriter(path, num_stages)
        self._num_reports, self._began_at = num_stages * num_slices, began_at
        self._open_steps: dict[int, _OpenStep] = {}
        self._leads = ClockLeads(same_host=same_host)
        self._ended_at = [0.0] * num_stages
        self._is_lost = False

    def launch(self, answer: Iterable[Message], now: float) -> None:
        """Record the steps among the messages of the scheduler, and the end of a restart."""
        for message in answer:
            if isinstance(message, EngineReady) and self._is_lost:
                self._writer.write_ready(now - self._began_at)
                self._is_lost = False
            if not isinstance(message, Step):
                continue
            self._writer.write_phase(message.phase, now - self._began_at)
            num_rows, num_tokens = len(message.sequence_ids) // 8, len(message.token_ids) // 4
            self._open_steps[message.step_id] = _OpenStep(
                message.phase, num_rows, num_tokens, self._num_reports
            )
            if len(self._open_steps) > MAX_OPEN_STEPS:
                del self._open_steps[next(iter(self._open_steps))]

    def lose(self, lost: StageLost, now: float) -> None:
        """Record that the stages were lost; a loss during a restart belongs to it."""
        if not self._is_lost:
            self._writer.write_loss(lost.reason, now - self._began_at)
        self._is_lost = True

    def observe(self, beat: Heartbeat, now: float) -> None:
        """Write the steps that a heartbeat reports."""
        shift_s = self._leads.lead_s(beat, now) - self._began_at
        columns = (
            memoryview(beat.step_ids).cast("q"),
            memoryview(beat.began_at).cast("d"),
            memoryview(beat.ended_at).cast("d"),
        )
        for step_id, began_at, ended_at in zip(*columns, strict=True):
            step = self._open_steps.get(step_id)
            if step is None:
                continue
            self._write(beat.stage, step_id, step, began_at + shift_s, ended_at + shift_s)
            step.reports_missing -= 1
            if not step.reports_missing:
                del self._open_steps[step_id]

    def sample(self, stats: Stats) -> None:
        """Write the gauges, and flush the file."""
        self._writer.write_gauges(
            Gauges(stats.uptime_s, stats.blocks_used, stats.blocks_total, stats.waiting, stats.live)
        )
        self._writer.flush()

    def close(self) -> None:
        """Close the file. Further calls do nothing."""
        self._writer.close()

    def _write(
        self, stage: int, step_id: int, step: _OpenStep, began_at: float, ended_at: float
    ) -> None:
        # The steps of a stage must not overlap, even if the estimated offset has just decreased.
        began_at = max(began_at, self._ended_at[stage])
        ended_at = self._ended_at[stage] = max(began_at, ended_at)
        self._writer.write_span(
            Span(stage, step_id, step.phase, step.num_rows, step.num_tokens, began_at, ended_at)
        )
