"""The report of a run: one object for `--json`, and a table to read."""

from collections.abc import Iterator
from typing import Any

from bench.record import Record

LATENCIES = {
    "ttft_s": "TTFT  to first token",
    "tpot_s": "TPOT  per output token",
    "itl_s": "ITL   between pieces",
    "e2e_s": "E2E   whole request",
}
# A later start than this (p99) means that the client, not the daemon, was the limit.
NOTABLE_LATENESS_S = 0.05
_SHOWN_ERRORS = 5
_COLUMNS = ("mean", "p50", "p90", "p99")


def describe_request(record: Record) -> dict[str, Any]:
    """One request as in the JSON; times in seconds since the run began."""
    return {
        "arrival_s": _rounded(record.arrival_s),
        "sent_s": _rounded(record.sent_s),
        "num_prompt_tokens": record.num_prompt_tokens,
        "num_output_tokens": record.num_output_tokens,
        "finish_reason": record.finish_reason,
        "error": record.error,
        "ttft_s": _rounded(record.ttft_s),
        "tpot_s": _rounded(record.tpot_s),
        "e2e_s": _rounded(record.e2e_s),
        "itl_s": [_rounded(gap) for gap in record.itl_s],
    }


def table(report: dict[str, Any]) -> str:
    """The report as text."""
    return "\n".join(
        [*_counts(report), "", *_latencies(report["summary"]), *_daemon(report["daemon"])]
    )


def _counts(report: dict[str, Any]) -> Iterator[str]:
    summary = report["summary"]
    ending = "" if report["ending"] == "finished" else f" ({report['ending']})"
    yield _row("requests", f"{summary['num_ok']} ok, {summary['num_failed']} failed{ending}")
    for error, count in list(summary["errors"].items())[:_SHOWN_ERRORS]:
        yield _row("", f"{count} x {error}")
    answers = summary["answers"]
    if answers is not None:
        yield _row("answers", f"{answers['num_right']} of {answers['num_known']} exactly right")
    yield _row("duration", f"{summary['duration_s']:.2f} s")
    tokens = f"{summary['num_prompt_tokens']:,} prompt, {summary['num_output_tokens']:,} output"
    yield _row("tokens", f"{tokens} in {summary['num_pieces']:,} pieces")
    yield _row("throughput", f"{summary['requests_per_s']:.2f} requests/s")
    yield _row("", f"{summary['output_tokens_per_s']:,.1f} output tokens/s")
    yield _row("", f"{summary['total_tokens_per_s']:,.1f} tokens/s in all")
    yield _row("client's CPU", f"{report['client_cpu_s']:.2f} s")
    lateness = summary["sent_late_s"]
    if lateness and lateness["p99"] > NOTABLE_LATENESS_S:
        yield _row("sent late by", f"{lateness['mean']:.2f} s (p99 {lateness['p99']:.2f} s)")


def _latencies(summary: dict[str, Any]) -> Iterator[str]:
    yield f"{'latency in ms':24}" + "".join(f"{column:>10}" for column in _COLUMNS)
    for key, name in LATENCIES.items():
        figures = summary[key]
        cells = [f"{1000 * figures[column]:.1f}" if figures else "-" for column in _COLUMNS]
        yield f"{name:24}" + "".join(f"{cell:>10}" for cell in cells)


def _daemon(figures: dict[str, Any] | None) -> Iterator[str]:
    if figures is None:
        return
    yield ""
    for work in figures["stages"]:
        if work is not None:
            busy = f"{work['busy_s']:.2f} s busy in {work['steps']} steps"
            yield _row(f"stage {work['stage']}", f"{busy}, bubble ratio {work['bubble_ratio']:.3f}")
    for name in ("phase_switches", "work_steals", "preemptions", "pipeline_restarts"):
        value = figures[name]
        yield _row(name.replace("_", " "), "?" if value is None else str(value))
    if figures["scheduler_busy_s"] is not None:
        yield _row("scheduler", f"{figures['scheduler_busy_s']:.2f} s busy")


def _row(name: str, value: str) -> str:
    return f"{name:24}{value}"


def _rounded(seconds: float | None) -> float | None:
    """To 10 microseconds, which is finer than the measurement."""
    return None if seconds is None else round(seconds, 5)
