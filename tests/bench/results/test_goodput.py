"""Goodput: a request counts if it meets all targets, and not if it failed."""

import pytest

from bench.results.goodput import goodput, parse_target
from bench.results.record import CONNECTION, Record
from tests.bench.world import DONE, piece, usage


def record(*piece_s: float) -> Record:
    """A whole answer, sent at 0; its pieces arrive at these times."""
    made = Record(arrival_s=0.0)
    made.send(0.0)
    for now in piece_s:
        made.feed(200, piece("a"), now)
    made.feed(200, usage(1, len(piece_s)) + DONE, piece_s[-1])
    made.end(200, piece_s[-1])
    return made


def test_only_requests_that_meet_all_targets_count() -> None:
    records = [record(1.0, 1.5), record(3.0, 3.5), record(1.0, 2.5), record(3.0, 6.0)]
    found = goodput(records, {"ttft_s": 2.0, "tpot_s": 1.0}, duration_s=8.0)
    assert found == {
        "targets": {"ttft_s": 2.0, "tpot_s": 1.0},
        "num_good": 1,
        "ratio": 0.25,
        "requests_per_s": 0.125,
        "ratio_by_target": {"ttft_s": 0.5, "tpot_s": 0.5},
    }


def test_a_latency_on_the_target_meets_it() -> None:
    found = goodput([record(2.0, 3.0)], {"ttft_s": 2.0, "tpot_s": 1.0, "e2e_s": 3.0}, 1.0)
    assert found is not None
    assert found["num_good"] == 1


def test_a_failed_request_meets_nothing_even_if_it_began_in_time() -> None:
    broken = record(1.0, 1.5)
    broken.fail(CONNECTION, "cut", 2.0)
    found = goodput([broken, record(1.0, 1.5)], {"ttft_s": 2.0}, 1.0)
    assert found is not None
    assert (found["ratio"], found["ratio_by_target"]["ttft_s"]) == (0.5, 0.5)


def test_an_answer_of_one_token_cannot_miss_the_time_per_token() -> None:
    found = goodput([record(1.0)], {"tpot_s": 0.001}, 1.0)
    assert found is not None
    assert found["num_good"] == 1


def test_without_targets_there_is_no_goodput() -> None:
    assert goodput([record(1.0)], {}, 1.0) is None


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("ttft:500", ("ttft_s", 0.5)),
        ("tpot:50.5", ("tpot_s", 0.0505)),
        ("e2el:2000", ("e2e_s", 2.0)),
        ("e2e:2000", ("e2e_s", 2.0)),
    ],
)
def test_targets_are_in_milliseconds_by_vllm_s_names(text: str, target: tuple[str, float]) -> None:
    assert parse_target(text) == target


@pytest.mark.parametrize("text", ["", "ttft", "ttft:", "ttft:0", "ttft:nan", "itl:5", "http://a:1"])
def test_what_is_no_target_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not like ttft:500"):
        parse_target(text)
