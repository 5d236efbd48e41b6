"""The timeline: no token is lost between the intervals, and none is counted twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.results.record import CONNECTION, Record
from bench.results.timeline import MOST_INTERVALS, timeline
from tests.bench.world import DONE, piece, usage


def record(sent_s: float, *piece_s: float, num_tokens: int | None = None) -> Record:
    """A whole answer whose pieces arrive at these times."""
    made = Record(arrival_s=0.0)
    made.send(sent_s)
    for now in piece_s:
        made.feed(200, piece("a"), now)
    made.feed(200, usage(1, num_tokens or len(piece_s)) + DONE, piece_s[-1])
    made.end(200, piece_s[-1])
    return made


def test_tokens_and_ends_are_counted_where_they_happened() -> None:
    records = [record(0.0, 0.5, 1.5, 2.5), record(1.2, 2.6)]
    found = timeline(records, duration_s=60.0)
    assert found["interval_s"] == 0.5
    assert found["output_tokens_per_s"][:6] == [0.0, 2.0, 0.0, 2.0, 0.0, 4.0]
    assert found["requests_per_s"][:6] == [0.0, 0.0, 0.0, 0.0, 0.0, 4.0]
    assert found["open_requests"][:6] == [1, 1, 2, 2, 2, 0]


def test_the_last_interval_is_only_as_long_as_the_run() -> None:
    found = timeline([record(0.0, 12.4)], duration_s=12.5)
    assert (found["interval_s"], len(found["output_tokens_per_s"])) == (0.2, 63)
    assert found["output_tokens_per_s"][-2:] == pytest.approx([0.0, 1 / 0.1])


def test_pieces_of_several_tokens_count_as_such() -> None:
    found = timeline([record(0.0, 0.05, 0.15, num_tokens=6)], duration_s=1.0)
    assert found["output_tokens_per_s"][:2] == pytest.approx([30.0, 30.0])


def test_the_tokens_of_a_failed_request_count_and_the_request_does_not() -> None:
    broken = Record(arrival_s=0.0)
    broken.send(0.0)
    broken.feed(200, piece("a"), 0.25)
    broken.fail(CONNECTION, "cut", 0.25)
    found = timeline([broken], duration_s=1.0)
    assert sum(found["output_tokens_per_s"]) == pytest.approx(10.0)
    assert sum(found["requests_per_s"]) == 0.0
    assert found["open_requests"][-1] == 0


def test_a_run_of_no_length_has_one_interval() -> None:
    assert timeline([Record(arrival_s=0.0)], duration_s=0.0)["open_requests"] == [0]


@given(st.lists(st.floats(0.0, 5000.0), min_size=1), st.floats(0.1, 5000.0))
def test_all_tokens_are_in_some_interval(times: list[float], more_s: float) -> None:
    duration_s = max(times) + more_s
    found = timeline([record(0.0, *sorted(times))], duration_s)
    rates, interval_s = found["output_tokens_per_s"], found["interval_s"]
    assert len(rates) <= MOST_INTERVALS + 1
    lengths = [interval_s] * (len(rates) - 1) + [duration_s - interval_s * (len(rates) - 1)]
    total = sum(rate * length for rate, length in zip(rates, lengths, strict=True))
    assert total == pytest.approx(len(times), rel=0.01)
