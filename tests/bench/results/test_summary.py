"""The summary: percentiles and throughput from records with known times."""

import pytest

from bench.call import Call
from bench.results.record import CONNECTION, RUN_ENDED, Record
from bench.results.summary import summarise
from tests.bench.world import DONE, piece, usage


def record(sent_s: float, *piece_s: float, texts: str = "abcdefgh") -> Record:
    """A whole answer from a prompt of 10 tokens; its pieces arrive at these times."""
    made = Record(arrival_s=0.0)
    made.send(sent_s)
    for text, now in zip(texts, piece_s, strict=False):
        made.feed(200, piece(text), now)
    made.feed(200, usage(10, len(piece_s)) + DONE, piece_s[-1])
    made.end(200, piece_s[-1])
    return made


def test_latencies_and_throughput_are_those_of_the_scripted_times() -> None:
    records = [record(0.0, 1.0, 2.0, 4.0), record(1.0, 1.5, 1.75)]
    summary = summarise([Call("/v1/completions")] * 2, records, duration_s=4.0)
    assert summary["ttft_s"]["mean"] == pytest.approx((1.0 + 0.5) / 2)
    assert summary["tpot_s"]["mean"] == pytest.approx((1.5 + 0.25) / 2)
    assert summary["itl_s"]["mean"] == pytest.approx((1.0 + 2.0 + 0.25) / 3)
    assert summary["e2e_s"]["p50"] == pytest.approx((4.0 + 0.75) / 2)
    assert summary["sent_late_s"]["mean"] == pytest.approx(0.5)
    assert summary["requests_per_s"] == 0.5
    assert summary["output_tokens_per_s"] == 1.25
    assert summary["total_tokens_per_s"] == 6.25
    assert (summary["num_prompt_tokens"], summary["num_output_tokens"]) == (20, 5)


def test_failures_are_counted_by_their_texts_and_add_nothing_to_the_figures() -> None:
    failed = [Record(arrival_s=0.0) for _ in range(3)]
    failed[0].fail(CONNECTION, "broken", 1.0)
    summary = summarise([Call("/v1/completions")] * 4, [record(0.0, 1.0), *failed], duration_s=1.0)
    assert (summary["num_ok"], summary["num_failed"]) == (1, 3)
    assert summary["errors"] == {"not sent": 2, "broken": 1}
    assert summary["error_kinds"] == {"not sent": 2, CONNECTION: 1}
    assert summary["requests_per_s"] == 1.0
    assert summary["e2e_s"]["p99"] == 1.0


def test_requests_that_the_end_of_the_run_cut_off_count_as_far_as_they_came() -> None:
    cut = Record(arrival_s=0.0)
    cut.send(0.0)
    for now in (1.0, 1.5, 2.5):
        cut.feed(200, piece("a"), now)
    cut.fail(RUN_ENDED, "open when the run was interrupted", 3.0)
    summary = summarise([Call("/v1/completions")] * 2, [cut, record(0.0, 3.0)], duration_s=4.0)
    assert (summary["num_ok"], summary["num_cut_off_pieces"]) == (1, 3)
    assert (summary["num_output_tokens"], summary["output_tokens_per_s"]) == (4, 1.0)
    assert summary["requests_per_s"] == 0.25
    assert summary["ttft_s"]["mean"] == 2.0
    assert summary["itl_s"]["mean"] == 0.75
    assert summary["tpot_s"] is None
    assert summary["e2e_s"]["mean"] == 3.0


def test_a_run_without_a_whole_answer_has_no_latencies() -> None:
    summary = summarise([Call("/v1/completions")], [Record(arrival_s=0.0)], duration_s=1.0)
    assert summary["ttft_s"] is None
    assert summary["output_tokens_per_s"] == 0.0


def test_answers_are_right_only_to_the_letter() -> None:
    requests = [
        Call("/v1/completions", {"prompt": "p"}, answer="ab"),
        Call("/v1/completions", {"prompt": "q"}, answer="ab."),
        Call("/v1/completions", {"prompt": "r"}),
    ]
    records = [record(0.0, 1.0, 2.0) for _ in requests]
    answers = summarise(requests, records, duration_s=1.0)["answers"]
    assert (answers["num_known"], answers["num_right"]) == (2, 1)
    assert answers["wrong"] == [{"prompt": "q", "right": "ab.", "given": "ab"}]


def test_an_answer_that_never_came_is_not_right() -> None:
    requests = [Call("/v1/completions", answer="")]
    answers = summarise(requests, [Record(arrival_s=0.0)], duration_s=1.0)["answers"]
    assert (answers["num_known"], answers["num_right"]) == (1, 0)


def test_a_workload_without_known_answers_says_nothing_of_them() -> None:
    summary = summarise([Call("/v1/completions")], [record(0.0, 1.0)], duration_s=1.0)
    assert summary["answers"] is None


def test_tokens_are_counted_by_the_usage_only_if_every_answer_has_one() -> None:
    without = Record(arrival_s=0.0)
    without.send(0.0)
    without.feed(200, piece("a", "stop") + DONE, 1.0)
    without.end(200, 1.0)
    calls = [Call("/v1/completions")] * 2
    counted = [
        summarise(calls, records, duration_s=1.0)["tokens_counted_by"]
        for records in ([record(0.0, 1.0)] * 2, [record(0.0, 1.0), without])
    ]
    assert counted == ["usage", "pieces"]


def test_the_percentiles_are_those_that_were_asked_for() -> None:
    summary = summarise([Call("/v1/completions")], [record(0.0, 1.0)], 1.0, (75, 99.9))
    assert list(summary["ttft_s"]) == ["mean", "p75", "p99.9"]
