"""The stage watch: decides from the stages' heartbeats whether a stage is lost.

A stage is lost if
- its process is gone, which the next check detects if the process runs on this host;
- its heartbeats stop, or do not begin although another stage sends heartbeats;
- it waits for a neighbour, and no stage of the group has computed anything in that time: a
  connection is broken, or a `Step` has not reached all stages;
- it computes, and makes no progress for much longer than any step takes.

While a stage loads weights, longer silence is accepted; `stage_start_timeout` limits the start.

Time is counted in checks, so that no stage is considered lost because the engine was stopped.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.stage_time import StageTime
from wire.messages import Heartbeat, StageStats

# Seconds of silence that are accepted from a stage that loads weights.
LOADING_SILENCE_S = 30.0


@dataclass(slots=True)
class _Stage:
    """The last heartbeat of a stage, and the checks since then and since its last progress."""

    beat: Heartbeat
    heard_at: float
    silent_checks: int = 0
    stalled_checks: int = 0


class StageWatch:
    """Call `observe` with each heartbeat and `find_trouble` every `interval_s` seconds.

    A stage may be silent, or wait, for `silence_s` seconds. It may compute without progress for
    `standstill_s` seconds.
    """

    def __init__(
        self,
        num_stages: int,
        interval_s: float,
        silence_s: float,
        standstill_s: float,
        *,
        same_host: bool,
    ) -> None:
        self.same_host = same_host
        self._num_stages = num_stages
        self._newest_epoch = 0
        self._newest_checks = 0  # since the first heartbeat of this epoch
        self._interval_s, self._silence_s, self._standstill_s = interval_s, silence_s, standstill_s
        self._stages: dict[int, _Stage] = {}
        self._quiet_checks = 0  # since any stage of the group last computed

    def observe(self, beat: Heartbeat, now: float) -> None:
        """Record a heartbeat, received at `now` (seconds)."""
        if beat.epoch > self._newest_epoch:
            self._newest_epoch, self._newest_checks = beat.epoch, 0
        known = self._stages.get(beat.stage)
        new = _Stage(beat, now)
        if known is not None and known.beat.epoch == beat.epoch:
            if known.beat.progress == beat.progress:
                new.stalled_checks = known.stalled_checks
            if known.beat.steps == beat.steps and beat.doing != "computes":
                self._stages[beat.stage] = new
                return
        self._quiet_checks = 0
        self._stages[beat.stage] = new

    @property
    def newest_epoch(self) -> int:
        """The newest epoch of the group that has sent a heartbeat; 0 before the first one."""
        return self._newest_epoch

    def pids(self, epoch: int) -> list[int]:
        """The process ids of this epoch of the group."""
        return [stage.beat.pid for stage in self._stages.values() if stage.beat.epoch == epoch]

    def find_trouble(self, epoch: int) -> str:
        """The reason why a stage of this epoch is lost, or an empty string if none is lost."""
        self._quiet_checks += 1
        self._newest_checks += 1
        for stage in self._stages.values():
            stage.silent_checks += 1
            stage.stalled_checks += 1
        present = [stage for stage in self._stages.values() if stage.beat.epoch == epoch]
        gone = [s.beat.stage for s in present if self.same_host and not _exists(s.beat.pid)]
        if gone:
            # torchrun ends the other stages at once, so it may be unknown which stage died first.
            return f"stage {gone[0]} died" if len(gone) == 1 else "the stages died"
        missing = set(range(self._num_stages)) - {stage.beat.stage for stage in present}
        if missing and present and self._newest_checks * self._interval_s > self._silence_s:
            return (
                f"stage {min(missing)} sent no heartbeat within {self._silence_s:g} s of the "
                "group's first one"
            )
        return next(filter(None, map(self._trouble, present)), "")

    def _trouble(self, stage: _Stage) -> str:
        name = f"stage {stage.beat.stage}"
        silent_s = stage.silent_checks * self._interval_s
        still_s = stage.stalled_checks * self._interval_s
        quiet_s = self._quiet_checks * self._interval_s
        is_loading = stage.beat.doing == "loads"
        if silent_s > (LOADING_SILENCE_S if is_loading else self._silence_s):
            return f"{name} was silent for {silent_s:.1f} s"
        # `>=`, not `>`: the last progress was earlier than the heartbeat that reported it.
        if stage.beat.doing == "waits" and min(still_s, quiet_s) >= self._silence_s:
            return f"{name} waited for a neighbour for {still_s:.1f} s, and no stage computed"
        if still_s > self._standstill_s and not is_loading:
            return f"{name} has made no progress for {still_s:.1f} s"
        return ""

    def stats(
        self, now: float, cost_ratios: dict[int, float], times: StageTime
    ) -> tuple[StageStats, ...]:
        """The figures of each stage; `cost_ratios` are predicted / real seconds by stage."""
        return tuple(
            StageStats(
                stage.beat.stage,
                stage.beat.pid,
                now - stage.heard_at,
                stage.beat.progress,
                times.steps[number],
                times.busy_s[number],
                cost_ratios.get(number, 0.0),
                times.bubble_s[number],
                stage.beat.exact,
            )
            for number, stage in sorted(self._stages.items())
        )


def _exists(pid: int) -> bool:
    """Whether the process runs; a zombie, not yet reaped by its parent, does not run."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
