"""A record: its figures follow from the times of the pieces, however the bytes were cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.results.record import CONNECTION, IN_STREAM, INCOMPLETE, NOT_OPENAI, NOT_SENT, Record
from tests.bench.world import DONE, chunk, piece, usage, whole_answer


def answered(*events: tuple[float, bytes], ended_s: float = 9.0) -> Record:
    """A record that is sent at 1.0 s and fed each event at its time."""
    record = Record(arrival_s=0.5)
    record.send(1.0)
    for now, data in events:
        record.feed(200, data, now)
    record.end(200, ended_s)
    return record


def test_latencies_follow_from_the_times_of_the_pieces() -> None:
    record = answered(
        (1.5, piece("a")),
        (2.0, piece("b")),
        (4.0, piece("c")),
        (4.5, piece("", "stop")),
        (4.6, usage(7, 4) + DONE),
        ended_s=5.0,
    )
    assert record.error is None
    assert record.ttft_s == 0.5
    assert record.itl_s == [0.5, 2.0, 0.5]
    assert record.tpot_s == pytest.approx((4.5 - 1.5) / 3)
    assert record.e2e_s == 4.0
    assert (record.text, record.finish_reason) == ("abc", "stop")
    assert (record.num_prompt_tokens, record.num_output_tokens) == (7, 4)


def test_tokens_are_counted_by_the_usage_and_not_by_the_pieces() -> None:
    record = answered((2.0, piece("a")), (5.0, piece("bcd", "length")), (5.0, usage(1, 7) + DONE))
    assert record.num_output_tokens == 7
    assert record.tpot_s == pytest.approx(3.0 / 6)


def test_a_single_piece_has_no_time_per_token() -> None:
    record = answered((2.0, piece("abc", "length")), (2.0, usage(1, 3) + DONE))
    assert record.error is None
    assert record.tpot_s is None
    assert record.itl_s == []


def test_a_request_that_was_never_sent_is_an_error_without_figures() -> None:
    record = Record(arrival_s=0.5)
    assert (record.error, record.error_kind) == ("not sent", NOT_SENT)
    assert (record.ttft_s, record.tpot_s, record.e2e_s) == (None, None, None)


@given(st.lists(st.integers(0, 400), max_size=6))
def test_a_stream_reads_the_same_however_it_is_cut(cuts: list[int]) -> None:
    stream = b"".join(whole_answer("é", "\n", "data: x"))
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    parts = [stream[a:b] for a, b in pairwise(edges)]
    record = answered(*((2.0, part) for part in parts))
    assert record.error is None
    assert record.text == "é\ndata: x"
    assert record.num_output_tokens == 3


def test_lines_that_end_in_carriage_returns_and_comments_are_read_too() -> None:
    stream = b": a comment\r\n\r\n" + b"".join(whole_answer("a")).replace(b"\n", b"\r\n")
    assert answered((2.0, stream)).error is None


def test_a_stream_that_ends_early_is_an_error() -> None:
    record = answered((2.0, piece("a")), (3.0, usage(1, 1)))
    assert (record.error, record.error_kind) == ("no whole answer", INCOMPLETE)


def test_without_usage_the_pieces_with_text_are_counted_as_tokens() -> None:
    record = answered((2.0, piece("a")), (3.0, piece("b")), (4.0, piece("", "stop") + DONE))
    assert (record.error, record.has_usage) == (None, False)
    assert (record.num_prompt_tokens, record.num_output_tokens) == (0, 2)


def test_a_stream_that_says_its_reason_to_finish_is_whole_without_an_end_mark() -> None:
    assert answered((2.0, piece("a", "stop")), (2.0, usage(1, 1))).error is None


def test_the_first_token_of_a_chat_is_not_the_chunk_with_the_role() -> None:
    record = answered(
        (1.5, chunk(role="assistant", content="")),
        (2.0, chunk(reasoning_content="hm")),
        (3.0, chunk(content="a")),
        (4.0, chunk(tool_calls=[{"index": 0}])),
        (5.0, chunk("stop")),
        (5.0, usage(7, 4) + DONE),
    )
    assert record.ttft_s == 1.0
    assert record.itl_s == [1.0, 1.0, 1.0]
    assert (record.text, record.finish_reason, record.num_output_tokens) == ("a", "stop", 4)


def test_reasoning_is_output_by_whatever_name() -> None:
    record = answered((2.0, chunk(reasoning="hm")), (3.0, chunk("stop") + DONE))
    assert (record.ttft_s, record.num_output_tokens) == (1.0, 1)


def test_an_answer_that_is_not_streamed_is_shown_as_what_it_is() -> None:
    record = answered((2.0, b'{"choices": [{"text": "whole"}]}'))
    assert record.error_kind == NOT_OPENAI
    assert record.error is not None
    assert record.error.startswith("no event in the answer")


def test_an_error_event_is_the_error_of_the_request() -> None:
    event = b'data: {"error": {"message": "the engine gave up", "type": "server_error"}}\n\n'
    record = answered((2.0, piece("a")), (3.0, event + DONE))
    assert (record.error, record.error_kind) == ("the engine gave up", IN_STREAM)


def test_an_error_may_be_a_text() -> None:
    record = answered((2.0, b'data: {"error": "no such model"}\n\n'))
    assert (record.error, record.error_kind) == ("no such model", IN_STREAM)


def test_an_event_that_is_no_completion_is_an_error() -> None:
    record = answered((2.0, b"data: {oops\n\n" + DONE))
    assert record.error_kind == NOT_OPENAI
    assert record.error is not None
    assert record.error.startswith("not an event of a completion")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b'{"error": {"message": "the queue is full"}}', "HTTP 429: the queue is full"),
        (b'{"error": "full"}', "HTTP 429: full"),
        (b"{}", "HTTP 429: no message"),
        (b"<html>busy</html>", "HTTP 429: <html>busy</html>"),
        (b'{"error": {"message": "1 error:\\n  no"}}', "HTTP 429: 1 error: no"),
    ],
)
def test_a_refusal_reports_its_status_and_its_text(body: bytes, error: str) -> None:
    record = Record(arrival_s=0.0)
    record.send(1.0)
    record.feed(429, body[:5], 1.1)
    record.feed(429, body[5:], 1.2)
    record.end(429, 1.3)
    assert (record.error, record.error_kind) == (error, "HTTP 429")
    assert record.ttft_s is None


def test_a_failure_keeps_what_has_arrived() -> None:
    record = Record(arrival_s=0.0)
    record.send(1.0)
    record.feed(200, piece("a"), 1.5)
    record.fail(CONNECTION, "cut", 2.0)
    assert record.error_kind == CONNECTION
    assert (record.error, record.text, record.ttft_s, record.e2e_s) == ("cut", "a", 0.5, 1.0)
