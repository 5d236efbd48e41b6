"""The daemon's own figures over a run: the growth of its counters in /metrics."""

import asyncio
from dataclasses import asdict, dataclass

from prometheus_client.parser import text_string_to_metric_families

from bench.exchange import Address, fetch

# A stage's heartbeat may be 0.5 s old, and the engine's report of it another 0.25 s.
SETTLE_S = 1.0
PATIENCE_S = 10.0
_PAUSE_S = 0.1
_UPTIME = "tdpipe_engine_uptime_seconds"

# Counter -> its name in the report.
COUNTERS = {
    "tdpipe_phase_switches_total": "phase_switches",
    "tdpipe_work_steals_total": "work_steals",
    "tdpipe_preemptions_total": "preemptions",
    "tdpipe_steps_total": "steps",
    "tdpipe_prefilled_tokens_total": "prefilled_tokens",
    "tdpipe_recomputed_tokens_total": "recomputed_tokens",
    "tdpipe_generated_tokens_total": "generated_tokens",
    "tdpipe_pipeline_restarts_total": "pipeline_restarts",
    "tdpipe_scheduler_busy_seconds_total": "scheduler_busy_s",
}

# (name, stage or "") -> value.
Figures = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class StageFigures:
    """A stage over the run.

    `bubble_ratio` is the share of bubbles in the time with a step in flight, so it is the same at
    any load; time without work does not count.
    """

    stage: int
    busy_s: float
    bubble_s: float
    steps: int
    bubble_ratio: float


def parse_figures(text: str) -> Figures:
    """All samples of the page, by name and stage."""
    return {
        (sample.name, sample.labels.get("stage", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def read_figures(address: Address) -> Figures | None:
    """Read the current figures; None if there is no such page, or not one of this daemon."""
    try:
        status, body = await fetch(address, "/metrics")
        figures = parse_figures(body.decode()) if status == 200 else {}
    except (OSError, ValueError):
        return None
    return figures if (_UPTIME, "") in figures else None


async def read_settled_figures(address: Address) -> Figures | None:
    """Read the figures when they include everything until now, or after a maximum wait."""
    figures = first = await read_figures(address)
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + PATIENCE_S
    while first and figures and loop.time() < give_up_at:
        if not 0 <= figures[_UPTIME, ""] - first[_UPTIME, ""] < SETTLE_S:
            break
        await asyncio.sleep(_PAUSE_S)
        figures = await read_figures(address)
    return figures


def growth(before: Figures, after: Figures) -> dict[str, object]:
    """Return the growth of the counters in a run, for the report.

    Counters restart at 0 with the engine, so a figure that shrank is reported as None.
    """
    report: dict[str, object] = {}
    for name, label in COUNTERS.items():
        grown = _grown(before, after, (name, ""))
        report[label] = grown if grown is None or label.endswith("_s") else int(grown)
    report["stages"] = [None if work is None else asdict(work) for work in _stages(before, after)]
    return report


def _stages(before: Figures, after: Figures) -> list[StageFigures | None]:
    numbers = sorted(int(stage) for name, stage in after if name == "tdpipe_stage_steps_total")
    return [_stage(before, after, number) for number in numbers]


def _stage(before: Figures, after: Figures, stage: int) -> StageFigures | None:
    busy_s = _grown(before, after, ("tdpipe_stage_busy_seconds_total", str(stage)))
    steps = _grown(before, after, ("tdpipe_stage_steps_total", str(stage)))
    bubble_s = _grown(before, after, ("tdpipe_stage_bubble_seconds_total", str(stage)))
    if busy_s is None or steps is None or bubble_s is None:
        return None
    ratio = bubble_s / (busy_s + bubble_s) if bubble_s else 0.0
    return StageFigures(stage, busy_s, bubble_s, int(steps), ratio)


def _grown(before: Figures, after: Figures, key: tuple[str, str]) -> float | None:
    if key not in before or key not in after or after[key] < before[key]:
        return None
    return after[key] - before[key]
