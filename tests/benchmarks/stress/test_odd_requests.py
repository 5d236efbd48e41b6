"""Requests with odd tokens: reproducible, valid JSON, and of every kind."""

import json

from benchmarks.stress.odd_requests import OddTokens, odd_requests

TOKENS = OddTokens("odd", ("<|x|>",), ("[PAD]",), 100)


def test_the_same_seed_gives_the_same_requests() -> None:
    assert list(odd_requests(TOKENS, 50, 3)) == list(odd_requests(TOKENS, 50, 3))
    assert list(odd_requests(TOKENS, 50, 3)) != list(odd_requests(TOKENS, 50, 4))


def test_all_fields_that_name_tokens_are_used_with_tokens_beyond_the_model() -> None:
    fields = {"prompt", "messages", "stop", "bad_words", "structured_outputs", "tools"}
    requests = list(odd_requests(TOKENS, 2000))
    named = {name for _, body in requests for name in body if "[PAD]" in json.dumps(body[name])}
    assert named == fields
    ids = {"allowed_token_ids", "stop_token_ids", "logit_bias"}
    beyond = {
        name
        for _, body in requests
        for name in ids & body.keys()
        if max(map(int, body[name])) >= TOKENS.num_ids
    }
    assert beyond == ids


def test_without_tokens_beyond_the_model_there_are_requests_too() -> None:
    padded = OddTokens("odd", ("<|x|>",), (), 100)
    assert {path for path, _ in odd_requests(padded, 100)} == {
        "/v1/completions",
        "/v1/chat/completions",
    }
