"""Stats: what the engine tells about itself four times a second, and its watch over the stages."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass

from engine.messages import Heartbeat, StageStats, Stats
from engine.scheduler import Scheduler


@dataclass(slots=True)
class _Stage:
    """A stage as last heard of; `moved_at` is when its progress last grew."""

    beat: Heartbeat
    heard_at: float
    moved_at: float


class StageWatch:
    """The stages' heartbeats, and who is lost.

    A stage is lost when its process is gone (seen at the next look where it runs on this host),
    when its heartbeat is silent for `silence_s`, or when it makes no progress for `standstill_s`:
    an idle stage makes some each second, a waiting one has a time-out of its own.
    """

    def __init__(self, silence_s: float, standstill_s: float, *, same_host: bool) -> None:
        self.same_host = same_host
        self._silence_s, self._standstill_s = silence_s, standstill_s
        self._stages: dict[int, _Stage] = {}

    def hear(self, beat: Heartbeat, now: float) -> None:
        """Take a stage's heartbeat."""
        known = self._stages.get(beat.stage)
        stands = known and (known.beat.epoch, known.beat.progress) == (beat.epoch, beat.progress)
        moved_at = known.moved_at if known and stands else now
        self._stages[beat.stage] = _Stage(beat, now, moved_at)

    def find_lost(self, epoch: int, now: float) -> tuple[Heartbeat, str] | None:
        """The first stage of this epoch that is lost, and what is wrong with it."""
        present = [stage for stage in self._stages.values() if stage.beat.epoch == epoch]
        gone = [s.beat for s in present if self.same_host and not _exists(s.beat.pid)]
        if gone:
            # torchrun ends the others at once, so it may be too late to tell which died first.
            who = f"stage {gone[0].stage}" if len(gone) == 1 else "the stages"
            return gone[0], f"{who} died"
        for stage in present:
            name = f"stage {stage.beat.stage}"
            if now - stage.heard_at > self._silence_s:
                return stage.beat, f"{name} was silent for {now - stage.heard_at:.1f} s"
            if now - stage.moved_at > self._standstill_s:
                return stage.beat, f"{name} has stood still for {now - stage.moved_at:.1f} s"
        return None

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


def collect(
    scheduler: Scheduler, stages: tuple[StageStats, ...], uptime_s: float, busy_s: float
) -> Stats:
    """The engine's figures as of now."""
    pipeline, pool = scheduler.pipeline, scheduler.pool
    common = {
        **asdict(scheduler.counters),
        "uptime_s": uptime_s,
        "busy_s": busy_s,
        "stages": stages,
    }
    return Stats(
        ready=pipeline is not None,
        phase=pipeline.policy.phase if pipeline else "prefill",
        waiting=len(pool.waiting),
        live=pool.num_live,
        in_flight=pool.num_in_flight,
        blocks_used=pool.ledger.num_used,
        blocks_total=pool.ledger.num_blocks,
        **common,
    )


def _exists(pid: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
