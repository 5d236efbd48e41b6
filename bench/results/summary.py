"""The summary of a run: counts, throughput and the distribution of each latency."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.call import Call
from bench.results.goodput import goodput
from bench.results.record import RUN_ENDED, Record
from bench.results.timeline import timeline
from simulator.spread import PERCENTILES, spread


def summarise(
    calls: Sequence[Call],
    records: Sequence[Record],
    duration_s: float,
    percentiles: Sequence[float] = PERCENTILES,
    targets: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the figures of a run, of whole answers only.

    Where the run ended early, requests that were cut off have their pieces counted as tokens, and
    their latencies as far as they are known.
    """
    ok = [record for record in records if record.error is None]
    cut = [record for record in records if record.error_kind == RUN_ENDED]
    seen = ok + cut
    num_cut_pieces = sum(len(record.piece_s) for record in cut)
    num_output = sum(record.num_output_tokens for record in ok) + num_cut_pieces
    num_total = num_output + sum(record.num_prompt_tokens for record in ok)
    num_counted = sum(record.has_usage for record in ok)
    lateness = (r.sent_s - r.arrival_s for r in records if r.sent_s is not None)
    return {
        "num_requests": len(records),
        "num_ok": len(ok),
        "num_failed": len(records) - len(ok),
        "errors": _counted(record.error for record in records),
        "error_kinds": _counted(record.error_kind for record in records),
        "duration_s": duration_s,
        "num_prompt_tokens": num_total - num_output,
        "num_output_tokens": num_output,
        "num_cut_off_pieces": num_cut_pieces,
        # With "pieces", the prompts' tokens are unknown, and outputs may have more tokens.
        "tokens_counted_by": "usage" if num_counted == len(ok) else "pieces",
        "num_pieces": sum(len(record.piece_s) for record in seen),
        "requests_per_s": len(ok) / duration_s,
        "output_tokens_per_s": num_output / duration_s,
        "total_tokens_per_s": num_total / duration_s,
        "ttft_s": spread((record.ttft_s for record in seen), percentiles),
        "tpot_s": spread((record.tpot_s for record in ok), percentiles),
        "itl_s": spread((gap for record in seen for gap in record.itl_s), percentiles),
        "e2e_s": spread((record.e2e_s for record in ok), percentiles),
        "sent_late_s": spread(lateness, percentiles),
        "goodput": goodput(records, targets or {}, duration_s),
        "timeline": timeline(records, duration_s),
        "answers": _answers(calls, records),
    }


def _counted(texts: Iterable[str | None]) -> dict[str, int]:
    """How often there is each, the most frequent first."""
    return dict(Counter(text for text in texts if text is not None).most_common())


def _answers(calls: Sequence[Call], records: Sequence[Record]) -> dict[str, Any] | None:
    """Return how many known answers were exactly right, and list the wrong ones."""
    pairs = [pair for pair in zip(calls, records, strict=True) if pair[0].answer is not None]
    if not pairs:
        return None
    whole = [(call, record) for call, record in pairs if record.error is None]
    wrong = [
        {"prompt": call.prompt, "right": call.answer, "given": record.text}
        for call, record in whole
        if record.text != call.answer
    ]
    return {"num_known": len(pairs), "num_right": len(whole) - len(wrong), "wrong": wrong}
