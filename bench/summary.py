"""The summary of a run: counts, throughput and the distribution of each latency."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from bench.record import Record
from simulator.spread import spread
from simulator.workloads.request import Request


def summarise(
    requests: Sequence[Request], records: Sequence[Record], duration_s: float
) -> dict[str, Any]:
    """Return the figures of a run; latencies and throughput include only whole answers."""
    ok = [record for record in records if record.error is None]
    num_output = sum(record.num_output_tokens for record in ok)
    num_total = num_output + sum(record.num_prompt_tokens for record in ok)
    return {
        "num_requests": len(records),
        "num_ok": len(ok),
        "num_failed": len(records) - len(ok),
        "errors": dict(Counter(r.error for r in records if r.error is not None).most_common()),
        "duration_s": duration_s,
        "num_prompt_tokens": num_total - num_output,
        "num_output_tokens": num_output,
        "num_pieces": sum(len(record.piece_s) for record in ok),
        "requests_per_s": len(ok) / duration_s,
        "output_tokens_per_s": num_output / duration_s,
        "total_tokens_per_s": num_total / duration_s,
        "ttft_s": spread(record.ttft_s for record in ok),
        "tpot_s": spread(record.tpot_s for record in ok),
        "itl_s": spread(gap for record in ok for gap in record.itl_s),
        "e2e_s": spread(record.e2e_s for record in ok),
        "sent_late_s": spread(r.sent_s - r.arrival_s for r in records if r.sent_s is not None),
        "answers": _answers(requests, records),
    }


def _answers(requests: Sequence[Request], records: Sequence[Record]) -> dict[str, Any] | None:
    """Return how many known answers were exactly right, and list the wrong ones."""
    pairs = [pair for pair in zip(requests, records, strict=True) if pair[0].answer is not None]
    if not pairs:
        return None
    whole = [(request, record) for request, record in pairs if record.error is None]
    wrong = [
        {"prompt": request.prompt, "right": request.answer, "given": record.text}
        for request, record in whole
        if record.text != request.answer
    ]
    return {"num_known": len(pairs), "num_right": len(whole) - len(wrong), "wrong": wrong}
