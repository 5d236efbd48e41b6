"""Workload files: read in order of arrival; errors contain the number of the line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.workloads.request import Request, WorkloadError
from simulator.workloads.request_file import read_requests, to_line

GOOD = '{"prompt": "a", "max_tokens": 5}'


def read(tmp_path: Path, *lines: str) -> list[Request]:
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(lines))
    return read_requests(file)


def test_text_and_token_ids_are_both_prompts(tmp_path: Path) -> None:
    ids = '{"prompt_token_ids": [5, 6], "max_tokens": 7, "ignore_eos": true}'
    assert read(tmp_path, GOOD, "", ids) == [Request("a", 5), Request((5, 6), 7, ignore_eos=True)]


def test_requests_are_sorted_by_arrival(tmp_path: Path) -> None:
    lines = [f'{{"prompt": "{s}", "max_tokens": 1, "arrival_s": {s}}}' for s in (3, 1, 2)]
    assert [request.prompt for request in read(tmp_path, *lines)] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not JSON", "malformed"),
        ("[1, 2]", "object"),
        ('{"prompt": "a"}', "max_tokens"),
        ('{"prompt": "a", "max_tokens": "5"}', "max_tokens"),
        ('{"prompt": "a", "max_tokens": 0}', "max_tokens"),
        ('{"max_tokens": 5}', "prompt"),
        ('{"prompt": "", "max_tokens": 5}', "prompt"),
        ('{"prompt": "a", "prompt_token_ids": [1], "max_tokens": 5}', "either"),
        ('{"prompt_token_ids": ["a"], "max_tokens": 5}', "prompt_token_ids"),
        ('{"prompt": "a", "max_tokens": 5, "arrival_s": -1}', "arrival_s"),
        ('{"prompt": "a", "max_tokens": 5, "expected_tokens": 0}', "expected_tokens"),
        ('{"prompt": "a", "max_token": 5}', "max_token"),
        ('{"prompt": "a", "max_tokens": 1000000000}', "at most 1e"),
        ('{"prompt": "a", "max_tokens": 5, "expected_tokens": 1000000000}', "at most 1e"),
        ('{"prompt": "a", "max_tokens": 5, "arrival_s": 1764400000}', "from the start of the run"),
    ],
)
def test_a_malformed_line_is_refused_in_one_line_with_its_number(
    tmp_path: Path, line: str, reason: str
) -> None:
    with pytest.raises(WorkloadError, match=reason) as refusal:
        read(tmp_path, GOOD, "", line)
    assert "mine.jsonl, line 3: " in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_bytes_that_are_not_utf_8_are_refused_with_the_number_of_their_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_bytes(GOOD.encode() + b'\n{"prompt": "\xff", "max_tokens": 1}')
    with pytest.raises(WorkloadError, match="line 2: "):
        read_requests(file)


def test_arrival_times_in_only_some_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="in all lines or in none"):
        read(tmp_path, GOOD, '{"prompt": "a", "max_tokens": 5, "arrival_s": 1}')


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="contains no requests"):
        read(tmp_path, "", "")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"cannot read .*: No such file"):
        read_requests(tmp_path / "none.jsonl")


REQUESTS = st.builds(
    Request,
    prompt=st.text(min_size=1) | st.lists(st.integers(0, 9), min_size=1).map(tuple),
    max_tokens=st.integers(1, 10**8),
    ignore_eos=st.booleans(),
    answer=st.none() | st.text(),
    arrival_s=st.just(0.25),
    expected_tokens=st.none() | st.integers(1, 10**8),
)


@given(st.lists(REQUESTS, min_size=1))
def test_every_request_is_read_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, requests: list[Request]
) -> None:
    file = tmp_path_factory.mktemp("lines") / "mine.jsonl"
    file.write_text("\n".join(map(to_line, requests)), encoding="utf-8")
    assert read_requests(file) == requests
