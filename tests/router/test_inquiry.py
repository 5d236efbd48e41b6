"""The inquiry: what the router reads of a body, whatever else is in it."""

import json
from typing import Any

import pytest

from router.inquiry import Inquiry, TokenRatio, read_inquiry
from server.http.errors import ApiError
from wire.prefix_keys import KEY_BYTES


def read(**body: Any) -> Inquiry:
    """Read a body."""
    return read_inquiry(json.dumps(body).encode(), TokenRatio())


@pytest.mark.parametrize(
    ("body", "num_tokens"),
    [
        ({"prompt": [1, 2, 3]}, 3),
        ({"prompt": [[1, 2, 3], [4]]}, 4),
        ({"prompt": "x" * 400}, 100),
        ({"prompt": "x"}, 1),
        ({}, 1),
        ({"input": "y" * 40}, 10),
    ],
)
def test_the_tokens_of_a_prompt_are_counted_or_estimated(body: Any, num_tokens: int) -> None:
    assert read(**body).num_prompt_tokens == num_tokens


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, 256),
        ({"max_tokens": 4096, "n": 2}, 512),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 7, "max_tokens": 5}, 7),
        ({"max_output_tokens": 9, "n": 2}, 18),
        ({"expected_tokens": 3, "max_tokens": 5}, 3),
        ({"max_tokens": "many", "n": [2]}, 256),
        ({"max_tokens": 10**300, "n": 10**300}, 256),
        ({"max_tokens": True}, 256),
    ],
)
def test_the_expected_output_is_what_the_client_says_or_usual(body: Any, expected: int) -> None:
    assert read(**body).expected_output == expected


def test_values_of_a_wrong_type_are_left_to_the_daemon() -> None:
    inquiry = read(model=3, timeout="x", priority="high", prompt={"a": 1})
    assert (inquiry.model, inquiry.timeout_s, inquiry.kind) == (None, None, "online")


def test_conversations_that_begin_alike_have_the_same_first_keys() -> None:
    messages = [{"role": "user", "content": "x" * 2000}, {"role": "assistant", "content": "y"}]
    short, long = read(messages=messages[:1]), read(messages=messages)
    assert len(short.prefix_keys) == 3
    assert long.prefix_keys[:3] == short.prefix_keys
    assert short.tokens_per_key == KEY_BYTES / 4


def test_bytes_per_token_are_learned_and_outliers_are_bounded() -> None:
    ratio = TokenRatio()
    for _ in range(200):
        ratio.learn(300, 100)
    assert ratio.bytes_per_token == pytest.approx(3, abs=0.01)
    ratio.learn(10**9, 1)
    assert ratio.bytes_per_token < 4
    ratio.learn(0, 5)
    assert read_inquiry(b'{"prompt": "xxxxxxxx"}', ratio).num_prompt_tokens == 2


@pytest.mark.parametrize("body", [b"", b"nope", b"[1]", b'{"a": ' + b"[" * 1000, b'"\xff"'])
def test_what_is_no_object_is_the_clients_error(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_inquiry(body, TokenRatio())
    assert caught.value.status == 400
