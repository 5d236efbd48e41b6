"""Stats: the figures of the engine, collected four times a second."""

from dataclasses import asdict

from engine.scheduler import Scheduler
from wire.messages import StageStats, Stats


def collect(
    scheduler: Scheduler,
    stages: tuple[StageStats, ...],
    uptime_s: float,
    busy_s: float,
    trouble: str,
    engine: int,
    dropped: int,
) -> Stats:
    """The `Stats` of this moment: gauges of the scheduler, and all counters by name."""
    pipeline, pool = scheduler.pipeline, scheduler.pool
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
        **asdict(scheduler.counters),
    )
