"""The lines of an input file: valid requests, and the errors of the others."""

import json
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.batches.storage.lines import BadLineError, Rules, check_line, read_lines
from server.openai.fields.batch import InputLine

RULES = Rules({"/v1/completions"}, {"little"}, 200)
GOOD: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/completions",
    "body": {"model": "little", "prompt": "hi"},
}


def changed(**changes: Any) -> bytes:
    """A valid line with changes; None removes a field."""
    values = GOOD | changes
    return json.dumps({key: value for key, value in values.items() if value is not None}).encode()


def test_a_body_is_kept_byte_for_byte() -> None:
    body = b'{ "model":"little",  "prompt" : "\\u20ac" }'
    line = b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":%b}\r\n' % body
    request = check_line(line, RULES)
    assert (request.custom_id, request.url, request.body) == ("a", "/v1/completions", body)


def test_the_api_knows_every_field_of_a_line() -> None:
    assert InputLine.model_validate(GOOD).model_dump() == GOOD
    for field in InputLine.model_fields:
        with pytest.raises(BadLineError, match=field):
            check_line(changed(**{field: None}), RULES)


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{broken\n", "invalid_json_line", None),
        (b'{"custom_id": "\xff"}', "invalid_json_line", None),
        (b"[]", "invalid_request", None),
        (changed(custom_id=None), "missing_required_parameter", "custom_id"),
        (changed(custom_id=7), "invalid_request", None),
        (changed(custom_id=""), "invalid_custom_id", "custom_id"),
        (changed(custom_id="x" * 513), "line_too_long", None),
        (changed(method=None), "missing_required_parameter", "method"),
        (changed(method="GET"), "invalid_method", "method"),
        (changed(url="/v1/embeddings"), "invalid_url", "url"),
        (changed(max_tokens=3), "invalid_request", None),
        (changed(body=None), "missing_required_parameter", "body"),
        (changed(body="hi"), "invalid_request", "body"),
        (changed(body={"prompt": "hi"}), "missing_required_parameter", "body.model"),
        (changed(body={"model": "other"}), "model_not_found", "body.model"),
        (changed(body={"model": "little", "stream": True}), "invalid_request", "body.stream"),
        (changed(body={"model": "little", "prompt": "x" * 200}), "line_too_long", None),
    ],
)
def test_a_bad_line_is_refused_by_name(line: bytes, code: str, param: str | None) -> None:
    with pytest.raises(BadLineError) as refused:
        check_line(line, RULES)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_a_line_that_is_nested_too_deeply_is_a_bad_line() -> None:
    rules = Rules(RULES.urls, RULES.models, 10_000_000)
    for depth in (2000, 1_000_000):
        body = b'{"model":"little","prompt":' + b"[" * depth + b"]" * depth + b"}"
        line = b'{"custom_id":"a","method":"POST","url":"/v1/completions","body":%b}' % body
        with pytest.raises(BadLineError) as refused:
            check_line(line, rules)
        assert refused.value.code == "invalid_json_line"


def test_lines_are_counted_from_one_and_blank_ones_are_skipped() -> None:
    file = BytesIO(b"\xef\xbb\xbfone\n\n  \r\ntwo\nthree")
    assert list(read_lines(file)) == [(1, b"one\n"), (4, b"two\n"), (5, b"three")]


@given(st.lists(st.integers(0, 25), max_size=80), st.integers(1, 12))
def test_a_long_line_is_cut(lengths: list[int], limit: int) -> None:
    file = BytesIO(b"".join(b"x" * length + b"\n" for length in lengths))
    whole = [(n, b"x" * length + b"\n") for n, length in enumerate(lengths, 1) if length]
    assert list(read_lines(file, limit)) == [(n, line[: limit + 1]) for n, line in whole]
