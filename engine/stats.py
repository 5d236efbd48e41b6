"""Stats: the figures of the engine, collected four times a second."""

from dataclasses import asdict

from engine.scheduler import Scheduler
from engine.stage_losses import LossCounter
from engine.stage_time import StageTime
from wire.messages import StageStats, Stats
from wire.promises import Promises


def collect(
    scheduler: Scheduler,
    now: float,
    stages: tuple[StageStats, ...],
    uptime_s: float,
    busy_s: float,
    trouble: str,
    engine: int,
    dropped: int,
    stage_time: StageTime,
    losses: LossCounter,
    starved_s: float,
    promises: Promises,
) -> Stats:
    """The `Stats` of `now` (seconds): gauges of the scheduler, and all counters by name."""
    pipeline, pool, times = scheduler.pipeline, scheduler.pool, scheduler.times
    return Stats(
        ready=pipeline is not None,
        phase=pipeline.policy.phase if pipeline else "prefill",
        waiting=len(pool.waiting),
        live=pool.num_live,
        in_flight=pool.num_in_flight,
        blocks_used=pool.ledger.num_used,
        blocks_total=pool.ledger.num_blocks,
        uptime_s=uptime_s,
        busy_s=busy_s,
        stages=stages,
        trouble=trouble,
        engine=engine,
        dropped=dropped,
        losses=losses.figures(),
        last_loss=losses.last,
        starved_s=starved_s,
        promises=promises,
        phase_s=stage_time.phase_s(now),
        switch_costs={phase: cost.figures() for phase, cost in stage_time.switch_costs.items()},
        request_times={
            "queue": times.queue.figures(),
            "prefill": times.prefill.figures(),
            "decode": times.decode.figures(),
        },
        **asdict(scheduler.counters),
    )
