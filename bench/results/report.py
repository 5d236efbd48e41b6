"""The report of a run: one object for `--output`, and a table to read."""

from collections.abc import Iterator
from typing import Any

from bench.results.record import Record

LATENCIES = {
    "ttft_s": "TTFT  to first token",
    "tpot_s": "TPOT  per output token",
    "itl_s": "ITL   between pieces",
    "e2e_s": "E2E   whole request",
}
# A later start than this (p99) means that the client, not the server, was the limit.
NOTABLE_LATENESS_S = 0.05
# Above this share of a core, the client's own work may be part of the latencies.
NOTABLE_CPU_SHARE = 0.7
_SHOWN_ERRORS = 5


def describe_request(record: Record) -> dict[str, Any]:
    """One request as in the JSON; times in seconds since the run began."""
    return {
        "arrival_s": _rounded(record.arrival_s),
        "sent_s": _rounded(record.sent_s),
        "num_prompt_tokens": record.num_prompt_tokens,
        "num_output_tokens": record.num_output_tokens,
        "finish_reason": record.finish_reason,
        "error": record.error,
        "error_kind": record.error_kind,
        "ttft_s": _rounded(record.ttft_s),
        "tpot_s": _rounded(record.tpot_s),
        "e2e_s": _rounded(record.e2e_s),
        "itl_s": [_rounded(gap) for gap in record.itl_s],
    }


def table(report: dict[str, Any], max_concurrency: int | None = None) -> str:
    """The report as text."""
    summary = report["summary"]
    return "\n".join(
        [
            *_counts(summary, report["ending"]),
            *_throughput(summary),
            *_goodput(summary["goodput"]),
            *_client(report, is_open_loop=max_concurrency is None),
            "",
            *_latencies(summary),
            *_daemon(report["daemon"]),
        ]
    )


def _counts(summary: dict[str, Any], ending: str) -> Iterator[str]:
    note = "" if ending == "finished" else f" ({ending})"
    yield _row("requests", f"{summary['num_ok']} ok, {summary['num_failed']} failed{note}")
    kinds = summary["error_kinds"]
    if len(kinds) > 1:
        yield _row("", ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    for error, count in list(summary["errors"].items())[:_SHOWN_ERRORS]:
        yield _row("", f"{count} x {error}")
    answers = summary["answers"]
    if answers is not None:
        yield _row("answers", f"{answers['num_right']} of {answers['num_known']} exactly right")


def _throughput(summary: dict[str, Any]) -> Iterator[str]:
    yield _row("duration", f"{summary['duration_s']:.2f} s")
    num_output, num_pieces = summary["num_output_tokens"], summary["num_pieces"]
    if summary["tokens_counted_by"] == "usage":
        tokens = f"{summary['num_prompt_tokens']:,} prompt, {num_output:,} output"
        yield _row("tokens", f"{tokens} in {num_pieces:,} pieces")
    else:
        yield _row("tokens", f"{num_output:,} output, counted by pieces: no usage in the streams")
    if summary["num_cut_off_pieces"]:
        cut = f"{summary['num_cut_off_pieces']:,} pieces are of requests that were cut off"
        yield _row("", cut)
    yield _row("throughput", f"{summary['requests_per_s']:.2f} requests/s")
    yield _row("", f"{summary['output_tokens_per_s']:,.1f} output tokens/s")
    if summary["tokens_counted_by"] == "usage":
        yield _row("", f"{summary['total_tokens_per_s']:,.1f} tokens/s in all")


def _goodput(goodput: dict[str, Any] | None) -> Iterator[str]:
    if goodput is None:
        return
    rate, ratio = goodput["requests_per_s"], goodput["ratio"]
    yield _row("goodput", f"{rate:.2f} requests/s; {ratio:.1%} of all requests met the targets")
    for name, limit_s in goodput["targets"].items():
        met = goodput["ratio_by_target"][name]
        yield _row("", f"{met:.1%} {name.removesuffix('_s').upper()} <= {1000 * limit_s:g} ms")


def _client(report: dict[str, Any], *, is_open_loop: bool) -> Iterator[str]:
    cpu_s, duration_s = report["client_cpu_s"], report["summary"]["duration_s"]
    share = cpu_s / duration_s
    busy = f" ({share:.0%} of a core: it may be the bottleneck)"
    yield _row("client's CPU", f"{cpu_s:.2f} s{busy if share > NOTABLE_CPU_SHARE else ''}")
    lateness = report["summary"]["sent_late_s"]
    # In a closed loop a request waits for a slot.
    if is_open_loop and lateness and max(lateness.values()) > NOTABLE_LATENESS_S:
        worst = list(lateness)[-1]
        yield _row("sent late by", f"{lateness['mean']:.2f} s ({worst} {lateness[worst]:.2f} s)")


def _latencies(summary: dict[str, Any]) -> Iterator[str]:
    columns = next((list(summary[key]) for key in LATENCIES if summary[key]), ["mean"])
    yield f"{'latency in ms':24}" + "".join(f"{column:>10}" for column in columns)
    for key, name in LATENCIES.items():
        figures = summary[key]
        cells = [f"{1000 * figures[column]:.1f}" if figures else "-" for column in columns]
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
