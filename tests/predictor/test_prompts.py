"""Prompts: JSONL or plain lines."""

from pathlib import Path

import pytest

from predictor.prompts import PromptsError, read_prompts


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("one\n\n two \r\nthree", ["one", " two ", "three"]),
        ('{"prompt": "one\\n", "max_tokens": 7}\n{"prompt": "two"}\n', ["one\n", "two"]),
        ("7\n8\n", ["7", "8"]),
        ('["a"]\n', ['["a"]']),
        ("{not JSON\n", ["{not JSON"]),
        ("a\u2028b\n", ["a\u2028b"]),
    ],
)
def test_prompts_are_read(tmp_path: Path, text: str, prompts: list[str]) -> None:
    path = tmp_path / "p"
    path.write_bytes(text.encode())
    assert read_prompts(path) == prompts


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "has no prompts"),
        (b"\n \n", "has no prompts"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b'{"prompt": "a"}\nplain\n', "line 2: "),
        (b'{"messages": []}\n', "line 1: .*prompt"),
        (b'{"prompt": ["a"]}\n', "line 1: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "p"
    path.write_bytes(data)
    with pytest.raises(PromptsError, match=problem) as caught:
        read_prompts(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptsError, match=r"cannot read .*/none"):
        read_prompts(tmp_path / "none")
