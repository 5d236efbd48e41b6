"""The timeline of a run: throughput and open requests, interval by interval."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.results.record import Record

# The lengths of intervals in seconds; the first one that gives at most this many is taken.
INTERVALS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
MOST_INTERVALS = 120

Edges = np.ndarray


def timeline(records: Sequence[Record], duration_s: float) -> dict[str, Any]:
    """Output tokens and finished requests per second, and open requests at the end of each.

    The tokens of failed requests count too: the server has made them.
    """
    interval_s = next(
        (each for each in INTERVALS_S if duration_s <= each * MOST_INTERVALS), INTERVALS_S[-1]
    )
    num = max(1, int(np.ceil(duration_s / interval_s - 1e-9)))
    edges = interval_s * np.arange(num + 1)
    # The last interval may be shorter.
    lengths = np.maximum(1e-9, np.minimum(edges[1:], duration_s) - edges[:-1])
    ended = [r.ended_s for r in records if r.error is None and r.ended_s is not None]
    return {
        "interval_s": interval_s,
        "output_tokens_per_s": _rounded(_tokens(records, edges) / lengths),
        "requests_per_s": _rounded(_histogram(ended, edges) / lengths),
        "open_requests": _open(records, edges).astype(int).tolist(),
    }


def _tokens(records: Sequence[Record], edges: Edges) -> "np.ndarray":
    """The tokens in each interval: those of an answer are spread evenly over its pieces."""
    total = np.zeros(len(edges) - 1)
    for record in records:
        if record.piece_s:
            tokens_per_piece = max(1.0, record.num_output_tokens / len(record.piece_s))
            total += tokens_per_piece * _histogram(record.piece_s, edges)
    return total


def _histogram(times: Sequence[float], edges: Edges) -> "np.ndarray":
    """How many times are in each interval; what comes after the last one counts for it."""
    index = (np.asarray(times, dtype=float) / (edges[1] - edges[0])).astype(int)
    return np.bincount(np.clip(index, 0, len(edges) - 2), minlength=len(edges) - 1).astype(float)


def _open(records: Sequence[Record], edges: Edges) -> "np.ndarray":
    sent = [r.sent_s for r in records if r.sent_s is not None]
    ended = [r.ended_s for r in records if r.sent_s is not None and r.ended_s is not None]
    return np.cumsum(_histogram(sent, edges) - _histogram(ended, edges))


def _rounded(values: "np.ndarray") -> list[float]:
    return [round(float(value), 6) for value in values]
