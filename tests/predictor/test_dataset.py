"""The requests: what is read, how it is split, and errors that name the line."""

import re
from pathlib import Path

import pytest

from predictor.dataset import DataError, read_requests, split
from tests.predictor.world import make_lines, write_lines


def test_requests_are_read_in_order_and_other_keys_ignored(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "output_len": 3, "finish_reason": "stop", "tokenizer": "00ff"},
        {"prompt": "", "output_len": 1},
    ]
    requests = read_requests(write_lines(tmp_path / "r.jsonl", lines), min_requests=2)
    assert requests.prompts == ("a", "")
    assert requests.output_lens.tolist() == [3, 1]
    assert requests.tokenizer == "00ff"


def test_empty_lines_are_not_requests(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('\n{"prompt": "a", "output_len": 3}\n\n')
    assert len(read_requests(path, min_requests=1)) == 1


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("not JSON", "malformed"),
        ('["a", 3]', "object"),
        ('{"prompt": "a"}', "output_len"),
        ('{"output_len": 3}', "prompt"),
        ('{"prompt": 7, "output_len": 3}', "prompt"),
        ('{"prompt": "a", "output_len": "3"}', "output_len"),
        ('{"prompt": "a", "output_len": 2.5}', "output_len"),
        ('{"prompt": "a", "output_len": true}', "output_len"),
        ('{"prompt": "a", "output_len": 0}', "positive whole number"),
        ('{"prompt": "a", "output_len": -3}', "positive whole number"),
        ('{"prompt": "a", "output_len": 3000000000}', "positive whole number"),
        ('{"prompt": "a", "output_len": 3, "tokenizer": 5}', "tokenizer"),
        ('{"prompt": "a", "output_len": 3, "tokenizer": "beef"}', "beef"),
        ('{"prompt": "\udcff", "output_len": 3}', "UTF-8|utf-8"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "r.jsonl"
    good = b'{"prompt": "a", "output_len": 3, "tokenizer": "cafe"}\n'
    path.write_bytes(good + line.encode("utf-8", "surrogateescape") + b"\n" + good)
    with pytest.raises(DataError, match=problem) as caught:
        read_requests(path, min_requests=1)
    assert f"{path}, line 2: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match="holds no requests"):
        read_requests(path)


def test_too_few_requests_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "r.jsonl", make_lines(49))
    with pytest.raises(DataError, match="holds 49 requests; at least 50"):
        read_requests(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(DataError, match=re.escape(f"cannot read {path}: ")):
            read_requests(path)


def test_a_split_is_60_20_20_and_holds_each_request_once(tmp_path: Path) -> None:
    lines = [{"prompt": f"p{i}", "output_len": i + 1} for i in range(100)]
    requests = read_requests(write_lines(tmp_path / "r.jsonl", lines))
    parts = split(requests, seed=1)
    each = (parts.training, parts.validation, parts.test)
    assert [len(part) for part in each] == [60, 20, 20]
    pairs = [
        (prompt, int(length))
        for part in each
        for prompt, length in zip(part.prompts, part.output_lens, strict=True)
    ]
    assert sorted(pairs) == sorted((f"p{i}", i + 1) for i in range(100))


def test_the_seed_decides_the_split(tmp_path: Path) -> None:
    requests = read_requests(write_lines(tmp_path / "r.jsonl", make_lines(60)))
    first, again, other = (split(requests, seed).test.prompts for seed in (1, 1, 2))
    assert first == again
    assert first != other
