"""Stats: what the engine tells about itself four times a second, and its watch over the stages."""

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from engine.messages import Heartbeat, StageStats, Stats
from engine.scheduler import Scheduler


@dataclass(slots=True)
class StageWatch:
    """The last heartbeat of each stage and when it came.

    `same_host` allows to look at a stage's process directly: a dead one is noticed at the next
    look, not only when its heartbeat has been missing for long.
    """

    timeout_s: float
    same_host: bool
    beats: dict[int, tuple[Heartbeat, float]] = field(default_factory=dict)

    def hear(self, beat: Heartbeat, now: float) -> None:
        """Take a stage's heartbeat."""
        self.beats[beat.stage] = (beat, now)

    def find_lost(self, epoch: int, now: float) -> tuple[Heartbeat, str] | None:
        """The first stage of this epoch that is dead or silent, and what is wrong with it."""
        present = [(b, heard_at) for b, heard_at in self.beats.values() if b.epoch == epoch]
        gone = [b for b, _ in present if self.same_host and not _exists(b.pid)]
        if gone:
            # torchrun ends the others at once, so it may be too late to tell which died first.
            who = f"stage {gone[0].stage}" if len(gone) == 1 else "the stages"
            return gone[0], f"{who} died"
        for beat, heard_at in present:
            if now - heard_at > self.timeout_s:
                return beat, f"stage {beat.stage} was silent for {now - heard_at:.1f} s"
        return None

    def stats(self, now: float) -> tuple[StageStats, ...]:
        """What is known of each stage."""
        return tuple(
            StageStats(b.stage, b.pid, now - heard_at, b.progress, b.steps, b.busy_s)
            for b, heard_at in (self.beats[stage] for stage in sorted(self.beats))
        )


def collect(
    scheduler: Scheduler, stages: tuple[StageStats, ...], uptime_s: float, busy_s: float
) -> Stats:
    """The engine's figures as of now."""
    pipeline = scheduler.pipeline
    common = {
        **asdict(scheduler.counters),
        "uptime_s": uptime_s,
        "busy_s": busy_s,
        "stages": stages,
    }
    if pipeline is None:
        return Stats(ready=False, phase="prefill", **common)
    pool = pipeline.pool
    return Stats(
        ready=True,
        phase=pipeline.policy.phase,
        waiting=len(pool.waiting),
        live=pool.num_live,
        in_flight=len(pipeline.in_flight),
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
