"""Goodput: the requests per second that meet all targets (service level objectives)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.results.record import Record

# The names on the command line, vLLM's, and the latency of a record.
TARGETS = {"ttft": "ttft_s", "tpot": "tpot_s", "e2el": "e2e_s", "e2e": "e2e_s"}


def parse_target(text: str) -> tuple[str, float]:
    """`ttft:500` as (`ttft_s`, 0.5). Raises `ValueError`."""
    name, separator, milliseconds = text.partition(":")
    try:
        target_s = float(milliseconds) / 1000
    except ValueError:
        target_s = 0.0
    if not separator or name not in TARGETS or not 0 < target_s < 1e8:
        raise ValueError(f"{text!r} is not like ttft:500 (milliseconds), tpot:50 or e2e:10000")
    return TARGETS[name], target_s


def goodput(
    records: Sequence[Record], targets: Mapping[str, float], duration_s: float
) -> dict[str, Any] | None:
    """How many requests met all targets and each of them; None without targets.

    `ratio` is their share of all requests, failed ones too.
    """
    if not targets:
        return None
    num_good = sum(_meets(record, targets.items()) for record in records)
    return {
        "targets": dict(targets),
        "num_good": num_good,
        "ratio": num_good / len(records),
        "requests_per_s": num_good / duration_s,
        "ratio_by_target": {
            name: sum(_meets(record, [(name, limit_s)]) for record in records) / len(records)
            for name, limit_s in targets.items()
        },
    }


def _meets(record: Record, targets: Iterable[tuple[str, float]]) -> bool:
    """A whole answer in time; an answer in one piece has no time per token to miss."""
    if record.error is not None:
        return False
    latencies = ((getattr(record, name), limit_s) for name, limit_s in targets)
    return all(latency is None or latency <= limit_s for latency, limit_s in latencies)
