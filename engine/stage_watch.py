"""The stage watch: decides from the stages' heartbeats whether a stage is lost.

A stage is lost if
- its process is gone, which the next check detects if the process runs on this host;
- its heartbeats stop, or do not begin although another stage sends heartbeats;
- it waits for a neighbour, and no stage of the group has computed anything in that time: a
  connection is broken, or a `Step` has not reached all stages;
- it computes, and makes no progress for much longer than any step takes;
- all stages are idle, and a step has not been answered: a connection that was closed between two
  hosts has lost its `Step` or its `StepDone`.

While a stage loads weights, longer silence is accepted; `stage_start_timeout` limits the start.

Time is counted in checks, so that no stage is considered lost because the engine was stopped.
Checks in which the stages were starved of CPU do not count as silence or waiting, but as no
progress.
"""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from daemon.processes import ranks
from daemon.processes.oom_kills import OomKills
from daemon.processes.process_exits import ProcessExit, zombie_status
from engine.stage_losses import Trouble
from engine.stage_time import StageTime
from wire.messages import Heartbeat, LossCause, StageStats

# Seconds of silence that are accepted from a stage that loads weights.
LOADING_SILENCE_S = 30.0
# Checks until the end of a process counts without a record of its exit. Its parent writes that in
# milliseconds, but at a load of 8 it was 0.4 s late; meanwhile torchrun restarts the stages anyway.
EXIT_CHECKS = 4


@dataclass(slots=True)
class _Stage:
    """The last heartbeat of a stage, and the checks since then, since its last progress, and since
    it began to wait for a neighbour.
    """

    beat: Heartbeat
    heard_at: float
    silent_checks: int = 0
    stalled_checks: int = 0
    waiting_checks: int = 0


class StageWatch:
    """Call `observe` with each heartbeat and `find_trouble` every `interval_s` seconds.

    A stage may be silent, or wait, for `silence_s` seconds. It may compute without progress for
    `standstill_s` seconds. `find_exit` returns the first exit of these processes or their parent,
    if that has recorded one; `are_starved` whether any of them was starved of CPU since it was last
    called. `starved_s` counts the seconds in which a suspected stage was.
    """

    def __init__(
        self,
        num_stages: int,
        interval_s: float,
        silence_s: float,
        standstill_s: float,
        *,
        same_host: bool,
        ranks_per_stage: int = 1,
        find_exit: Callable[[Sequence[int]], ProcessExit | None] = lambda _: None,
        are_starved: Callable[[Sequence[int]], bool] = lambda _: False,
    ) -> None:
        self.same_host = same_host
        self._ranks = {(n, rank) for n in range(num_stages) for rank in range(ranks_per_stage)}
        self._find_exit, self._are_starved = find_exit, are_starved
        self._oom_kills = OomKills()
        self.starved_s = 0.0
        self._newest_epoch = 0
        self._newest_checks = 0  # since the first heartbeat of this epoch
        self._interval_s, self._silence_s, self._standstill_s = interval_s, silence_s, standstill_s
        self._stages: dict[tuple[int, int], _Stage] = {}  # by stage and rank in it
        self._quiet_checks = 0  # since any stage of the group last computed
        self._gone_checks = 0  # since a process of the group was first missed
        self._awaited = -1  # the step that the engine waits for
        self._idle_checks = 0  # since all stages are idle while it is awaited

    def observe(self, beat: Heartbeat, now: float) -> None:
        """Record a heartbeat, received at `now` (seconds)."""
        if beat.epoch > self._newest_epoch:
            self._newest_epoch, self._newest_checks = beat.epoch, 0
            self._gone_checks = 0
        rank = beat.stage, beat.tensor_rank
        known = self._stages.get(rank)
        new = _Stage(beat, now)
        if known is not None and known.beat.epoch == beat.epoch:
            if known.beat.progress == beat.progress:
                # Time in which a stage loads or has nothing to do is none in which it waits.
                if known.beat.doing != "loads":
                    new.stalled_checks = known.stalled_checks
                if known.beat.steps == beat.steps and known.beat.doing == beat.doing == "waits":
                    new.waiting_checks = known.waiting_checks
            if known.beat.steps == beat.steps and beat.doing != "computes":
                self._stages[rank] = new
                return
        self._quiet_checks = 0
        self._stages[rank] = new

    @property
    def newest_epoch(self) -> int:
        """The newest epoch of the group that has sent a heartbeat; 0 before the first one."""
        return self._newest_epoch

    def pids(self, epoch: int) -> list[int]:
        """The process ids of this epoch of the group."""
        return [stage.beat.pid for stage in self._stages.values() if stage.beat.epoch == epoch]

    def find_trouble(self, epoch: int, awaited: int = -1) -> Trouble | None:
        """The reason why a stage of this epoch is lost, or None if none is lost.

        `awaited` is the step that has been in flight for longest, -1 without any.
        """
        present = [stage for stage in self._stages.values() if stage.beat.epoch == epoch]
        are_idle = bool(present) and all(stage.beat.doing == "idle" for stage in present)
        self._count_check(present)
        if awaited != self._awaited or awaited < 0 or not are_idle:
            self._awaited, self._idle_checks = awaited, 0
        self._oom_kills.refresh()
        gone = [s.beat for s in present if self.same_host and not _exists(s.beat.pid)]
        if gone:
            self._gone_checks += 1
            trouble = self.death(epoch, gone)
            is_known = trouble.cause != "other" or self._gone_checks >= EXIT_CHECKS
            return trouble if is_known else None
        missing = self._ranks - {(s.beat.stage, s.beat.tensor_rank) for s in present}
        if missing and present and self._newest_checks * self._interval_s > self._silence_s:
            stage, rank = min(missing)
            reason = (
                f"{ranks.describe(stage, rank)} sent no heartbeat within {self._silence_s:g} s of "
                "the group's first one"
            )
            return Trouble(reason, "silence", stage)
        idle_s = self._idle_checks * self._interval_s
        if awaited >= 0 and are_idle and idle_s > self._silence_s:
            reason = f"no stage has run step {awaited} for {idle_s:.1f} s, and all are idle"
            return Trouble(reason, "link")
        return next(filter(None, map(self._trouble, present)), None)

    def _count_check(self, present: Sequence[_Stage]) -> None:
        for stage in self._stages.values():
            stage.stalled_checks += 1
        is_suspicious = self._longest_s(present) >= self._silence_s / 2
        if is_suspicious and self._are_starved([stage.beat.pid for stage in present]):
            self.starved_s += self._interval_s
            return
        self._quiet_checks += 1
        self._newest_checks += 1
        self._idle_checks += 1
        for stage in self._stages.values():
            stage.silent_checks += 1
            stage.waiting_checks += 1

    def _longest_s(self, present: Sequence[_Stage]) -> float:
        """The longest time for which a stage has been silent or missing, or has waited."""
        checks = [max(stage.silent_checks, stage.waiting_checks) for stage in present]
        if self._awaited >= 0:
            checks.append(self._idle_checks)
        if len(present) < len(self._ranks):
            checks.append(self._newest_checks)
        return max(checks, default=0) * self._interval_s

    def death(self, epoch: int, gone: Sequence[Heartbeat] = ()) -> Trouble:
        """Why the processes of this epoch died, of which at least those in `gone` have ended."""
        ended = self._find_exit(self.pids(epoch)) or self._find_zombie(gone)
        if ended is not None:
            return Trouble.of_exit(ended)
        if len(gone) == 1:
            name = ranks.describe(gone[0].stage, gone[0].tensor_rank)
            return Trouble(f"{name} died", stage=gone[0].stage, pid=gone[0].pid)
        # torchrun ends the other stages at once, so it is unknown which stage died first.
        return Trouble("the stages died")

    def _find_zombie(self, gone: Sequence[Heartbeat]) -> ProcessExit | None:
        """A process that has not been reaped; one that was killed is rather the cause."""
        statuses = [(zombie_status(beat.pid), beat) for beat in gone]
        known = [(status, beat) for status, beat in statuses if status is not None]
        if not known:
            return None
        status, beat = min(known, key=lambda each: each[0] >= 0)
        is_oom = status == -signal.SIGKILL and self._oom_kills.are_recent()
        return ProcessExit(beat.stage, beat.pid, status, is_oom, tensor_rank=beat.tensor_rank)

    def _trouble(self, stage: _Stage) -> Trouble | None:
        name = ranks.describe(stage.beat.stage, stage.beat.tensor_rank)
        silent_s = stage.silent_checks * self._interval_s
        still_s = stage.stalled_checks * self._interval_s
        waited_s = min(stage.waiting_checks, self._quiet_checks) * self._interval_s
        is_loading = stage.beat.doing == "loads"
        reason = ""
        cause: LossCause = "other"
        if silent_s > (LOADING_SILENCE_S if is_loading else self._silence_s):
            reason, cause = f"{name} was silent for {silent_s:.1f} s", "silence"
        # `>=`, not `>`: the wait began earlier than the heartbeat that reported it.
        elif stage.beat.doing == "waits" and waited_s >= self._silence_s:
            reason = f"{name} waited for a neighbour for {waited_s:.1f} s, and no stage computed"
            cause = "link"
        elif still_s > self._standstill_s and not is_loading:
            reason, cause = f"{name} has made no progress for {still_s:.1f} s", "standstill"
        return Trouble(reason, cause, stage.beat.stage, stage.beat.pid) if reason else None

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
            for (number, rank), stage in sorted(self._stages.items())
            if not rank
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
