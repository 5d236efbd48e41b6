"""The stage watch: the stages' heartbeats, and who of them is lost.

A stage is lost when
  its process is gone, which is seen at the next look where it runs on this host;
  its heartbeat is silent, or was never heard of although another's was;
  it waits for a neighbour, and for as long nobody in the group has computed anything: a link is
  cut, or a plan has not reached all;
  it computes, and makes no progress for much longer than any step takes.

Loading weights may hold a process up for long; how long all of it may take, others say.

Time is counted in looks: a watch that was itself held up blames nobody.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wire.messages import Heartbeat, StageStats

# Silence that is borne of a stage that loads.
LOADING_SILENCE_S = 30.0


@dataclass(slots=True)
class _Stage:
    """A stage as last heard of, and the looks since its last beat and its last progress."""

    beat: Heartbeat
    heard_at: float
    silent_looks: int = 0
    still_looks: int = 0


class StageWatch:
    """Call `hear` with each heartbeat and `find_trouble` every `interval_s` seconds.

    Silence and waiting are borne for `silence_s`, a standstill in a step for `standstill_s`.
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
        self._newest_looks = 0  # since its first beat
        self._interval_s, self._silence_s, self._standstill_s = interval_s, silence_s, standstill_s
        self._stages: dict[int, _Stage] = {}
        self._quiet_looks = 0  # since anybody of the group has computed

    def hear(self, beat: Heartbeat, now: float) -> None:
        """Take a stage's heartbeat."""
        if beat.epoch > self._newest_epoch:
            self._newest_epoch, self._newest_looks = beat.epoch, 0
        known = self._stages.get(beat.stage)
        new = _Stage(beat, now)
        if known is not None and known.beat.epoch == beat.epoch:
            if known.beat.progress == beat.progress:
                new.still_looks = known.still_looks
            if known.beat.steps == beat.steps and beat.doing != "computes":
                self._stages[beat.stage] = new
                return
        self._quiet_looks = 0
        self._stages[beat.stage] = new

    @property
    def newest_epoch(self) -> int:
        """The youngest life of the group that was heard of, 0 before any."""
        return self._newest_epoch

    def pids(self, epoch: int) -> list[int]:
        """The processes of this life of the group."""
        return [stage.beat.pid for stage in self._stages.values() if stage.beat.epoch == epoch]

    def find_trouble(self, epoch: int) -> str:
        """What is wrong with a stage of this epoch that is lost; empty where none is."""
        self._quiet_looks += 1
        self._newest_looks += 1
        for stage in self._stages.values():
            stage.silent_looks += 1
            stage.still_looks += 1
        present = [stage for stage in self._stages.values() if stage.beat.epoch == epoch]
        gone = [s.beat.stage for s in present if self.same_host and not _exists(s.beat.pid)]
        if gone:
            # torchrun ends the others at once, so it may be too late to tell which died first.
            return f"stage {gone[0]} died" if len(gone) == 1 else "the stages died"
        missing = set(range(self._num_stages)) - {stage.beat.stage for stage in present}
        if missing and present and self._newest_looks * self._interval_s > self._silence_s:
            return f"stage {min(missing)} was never heard of"
        return next(filter(None, map(self._trouble, present)), "")

    def _trouble(self, stage: _Stage) -> str:
        name = f"stage {stage.beat.stage}"
        silent_s = stage.silent_looks * self._interval_s
        still_s = stage.still_looks * self._interval_s
        quiet_s = self._quiet_looks * self._interval_s
        is_loading = stage.beat.doing == "loads"
        if silent_s > (LOADING_SILENCE_S if is_loading else self._silence_s):
            return f"{name} was silent for {silent_s:.1f} s"
        # Not longer than the silence, but as long: word of the last work is itself late by a beat.
        if stage.beat.doing == "waits" and min(still_s, quiet_s) >= self._silence_s:
            return f"{name} waited for a neighbour for {still_s:.1f} s, and nobody worked"
        if still_s > self._standstill_s and not is_loading:
            return f"{name} has stood still for {still_s:.1f} s"
        return ""

    def stats(self, now: float, cost_ratios: dict[int, float]) -> tuple[StageStats, ...]:
        """What is known of each stage, with what the cost model predicted over what it took."""
        return tuple(
            StageStats(
                stage.beat.stage,
                stage.beat.pid,
                now - stage.heard_at,
                stage.beat.progress,
                stage.beat.steps,
                stage.beat.busy_s,
                cost_ratios.get(number, 0.0),
            )
            for number, stage in sorted(self._stages.items())
        )


def _exists(pid: int) -> bool:
    """Whether it runs. One that has died may stay for as long as nobody asks how."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
