"""Errors: OpenAI's error body, the right status, and the field at fault."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from server.http import errors
from tests.server.world import MODEL, Daemon, serving

REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": []}, "prompt", "must not be empty"),
    ({"prompt": [[]]}, "prompt", "must not be empty"),
    ({"prompt": 7}, "prompt", "expected a string"),
    ({"prompt": ["a", 7]}, "prompt[1]", "expected a string, got 7 (an integer)"),
    ({"prompt": [True]}, "prompt[0]", "expected a string, an integer or an array, got true"),
    ({"prompt": None}, "prompt", "Missing required parameter: 'prompt'"),
    ({"model": 5}, "model", "expected a string"),
    (
        {"prompt": [5, 9999]},
        "prompt",
        "'prompt' contains token id 9999, which is out of vocabulary: the model has only 282",
    ),
    (
        {"prompt": [[1], [-1]]},
        "prompt",
        "'prompt' contains token id -1, which is out of vocabulary: the model has only 282",
    ),
    ({"max_tokens": "5"}, "max_tokens", "integer"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
    ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"top_k": -2}, "top_k", "greater than or equal to -1"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 129}, "n", "less than or equal to 128"),
    ({"n": 128, "prompt": ["a"] * 33}, "prompt", "prompts x n"),
    ({"seed": 2**64}, "seed", "less than"),
    ({"stop": 5}, "stop", "valid"),
    ({"stop": [""]}, "stop", "empty string"),
    ({"stop": ["a"] * 65}, "stop", "64"),
    ({"stop": "a" * 257}, "stop", "more than 256 characters"),
    ({"stop": ["a", "b" * 257]}, "stop", "more than 256 characters"),
    ({"stream": "yes"}, "stream", "boolean"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "only allowed when"),
    (
        {"stream": True, "stream_options": {"include_usage": 5}},
        "stream_options.include_usage",
        "boolean",
    ),
    ({"min_tokens": 3, "max_tokens": 2}, "min_tokens", "greater than 'max_tokens'"),
    ({"min_tokens": 17}, "min_tokens", "greater than 'max_tokens'"),
    ({"logprobs": 21}, "logprobs", "must not exceed 20"),
    ({"prompt_logprobs": 21}, "prompt_logprobs", "must not exceed 20"),
    ({"logprobs": -1}, "logprobs", "must not exceed 20 (-1 asks for 282)"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"logit_bias": {"x": 1, "5": 1, "y": 2}}, "logit_bias", "must be token ids, not 'x', 'y'"),
    ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "keys must be token ids"),
    ({"logit_bias": {"٣": 1}}, "logit_bias", "keys must be token ids"),
    ({"bad_words": ["x" * 129]}, "bad_words[0]", "at most 128"),
    ({"logit_bias": {"9999": 1}}, "logit_bias", "contains token id 9999, which"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "less than or equal to 100"),
    ({"presence_penalty": 2.5}, "presence_penalty", "less than or equal to 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "greater than or equal to -2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"min_p": 1.5}, "min_p", "less than or equal to 1"),
    ({"stop_token_ids": [9999]}, "stop_token_ids", "contains token id 9999, which"),
    ({"allowed_token_ids": [9999]}, "allowed_token_ids", "contains token id 9999, which"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids[0]", "greater than or equal to 0"),
    ({"allowed_token_ids": []}, "allowed_token_ids", "must not be empty"),
    ({"bad_words": [""]}, "bad_words", "empty string"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1"),
    ({"service_tier": "gold"}, "service_tier", "'auto', 'default', 'flex', 'scale'"),
    ({"use_beam_search": True}, "use_beam_search", "should be False"),
    ({"use_beam_search": 0}, "use_beam_search", "should be false"),
    ({"best_of": 3, "n": 2}, "best_of", "not supported"),
]


@pytest.mark.parametrize(("fields", "param", "words"), REFUSED, ids=lambda value: str(value)[:30])
def test_a_wrong_request_is_400_and_names_the_field(
    daemon: Daemon, fields: dict[str, Any], param: str | None, words: str
) -> None:
    response = daemon.complete(**fields)
    error = response.json()["error"]
    assert response.status_code == 400
    assert words in error["message"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": None, "suffix": None, "logit_bias": None, "stop": None, "user": None},
        {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "suffix": ""},
        {"logprobs": None, "service_tier": "default", "priority": -3},
        {"service_tier": "priority"},
        {"service_tier": "scale"},
        {"use_beam_search": False, "length_penalty": 1.0, "request_id": "x", "cache_salt": "y"},
        {"spaces_between_special_tokens": True, "add_special_tokens": True, "vllm_xargs": {}},
        {"stream": True, "stream_options": {"continuous_usage_stats": False}},
        {"stream": True, "stream_options": {"include_usage": None}},
        {"structured_outputs": {"regex": "a", "json": None}},
        {"best_of": 1, "repetition_penalty": 1.0, "min_p": 0, "temperature": None, "n": None},
        {"best_of": 2, "n": 2, "user": "me", "stream_options": None, "top_k": -1, "seed": -5},
    ],
)
def test_neutral_values_are_accepted(daemon: Daemon, fields: dict[str, Any]) -> None:
    assert daemon.complete(**fields).status_code == 200


def test_the_error_of_a_too_long_prompt_gives_the_numbers(daemon: Daemon) -> None:
    error = daemon.complete(prompt=[9] * 60, max_tokens=5).json()["error"]
    assert error == {
        "message": "This model's maximum context length is 64 tokens, however you requested 65 "
        "tokens (60 in your prompt; 5 for the completion). Please reduce your prompt; or "
        "completion length.",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "context_length_exceeded",
    }
    error = daemon.complete(prompt=[9] * 64).json()["error"]
    assert error["param"] == "prompt"
    assert error["code"] == "context_length_exceeded"


def test_a_prompt_that_is_far_too_long_is_not_tokenized(daemon: Daemon) -> None:
    unknown = 10**6
    error = daemon.complete(prompt=[[9], [9] * 64 + [unknown]]).json()["error"]
    assert error["code"] == "context_length_exceeded"
    error = daemon.complete(prompt=[9] * 64 + [unknown], truncate_prompt_tokens=9).json()["error"]
    assert error["message"].startswith("'prompt' contains token id 1000000, which is out")


def test_an_unknown_model_is_404(daemon: Daemon) -> None:
    response = daemon.complete(model="other")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert "`other`" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"model": }', b"[]", b'"x"', b"\xff\xfe", b'{"prompt": "\\ud800"}']
)
def test_a_body_that_is_no_json_object_is_400(daemon: Daemon, body: bytes) -> None:
    response = daemon.http.post(f"{daemon.url}/v1/completions", content=body)
    assert response.status_code == 400
    assert "JSON body" in response.json()["error"]["message"]


def test_a_body_without_a_content_type_is_read(daemon: Daemon) -> None:
    body = f'{{"model": "{MODEL}", "prompt": "hi"}}'.encode()
    assert daemon.http.post(f"{daemon.url}/v1/completions", content=body).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nowhere", 404, "Invalid URL (GET /nowhere)"),
        ("POST", "/v1/chat", 404, "Invalid URL (POST /v1/chat)"),
        ("GET", "/v1/completions", 405, "Method not allowed (GET /v1/completions)"),
        ("DELETE", "/health", 405, "Method not allowed (DELETE /health)"),
    ],
)
def test_unknown_paths_and_methods_have_the_error_body(
    daemon: Daemon, method: str, path: str, status: int, words: str
) -> None:
    response = daemon.http.request(method, daemon.url + path)
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(words)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/moderations"),
        ("GET", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/threads/thread_1/runs"),
        ("GET", "/v1/vector_stores/vs_1/files"),
        ("POST", "/v1/uploads"),
        ("POST", "/v1/realtime/sessions"),
        ("POST", "/v1/conversations"),
        ("GET", "/v1/evals"),
    ],
)
def test_what_openai_has_and_this_server_has_not_is_404_with_what_is_served(
    daemon: Daemon, method: str, path: str
) -> None:
    response = daemon.http.request(method, daemon.url + path)
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "unknown_url")
    assert error["message"].startswith(f"Invalid URL ({method} {path}). This server serves /v1/")
    assert error["message"].endswith(f"{', '.join(errors.SERVED_PATHS)}.")


def test_the_served_paths_are_those_of_the_document(daemon: Daemon) -> None:
    paths = daemon.get("/openapi.json").json()["paths"]
    assert set(errors.SERVED_PATHS) == {path for path in paths if "{" not in path}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_1"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/responses/resp_1/cancel"),
        ("GET", "/v1/responses/resp_1/input_items"),
        ("GET", "/v1/chat/completions/chatcmpl-1/messages"),
    ],
)
def test_answers_that_were_not_stored_are_404_in_words(
    daemon: Daemon, method: str, path: str
) -> None:
    response = daemon.http.request(method, daemon.url + path)
    assert response.status_code == 404
    assert "stores nothing of POST /v1/" in response.json()["error"]["message"]


def test_a_body_that_is_too_large_is_413(tmp_path: Path) -> None:
    with serving(tmp_path, max_body_bytes=1024) as daemon:
        announced = daemon.complete(prompt="x" * 2000)
        parts = (b"x" * 500 for _ in range(4))
        chunked = httpx.post(f"{daemon.url}/v1/completions", content=parts, timeout=10)
    for response in (announced, chunked):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


def test_a_wrong_method_is_answered_with_all_methods_of_the_path(daemon: Daemon) -> None:
    response = daemon.http.put(f"{daemon.url}/v1/files")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST"
    for path in ("/health", "/docs", "/docs-assets/swagger-ui.css"):
        assert daemon.http.delete(daemon.url + path).headers["allow"] == "GET"


def test_a_slash_too_many_is_404_and_no_redirect(daemon: Daemon) -> None:
    response = daemon.http.get(f"{daemon.url}/health/")
    assert response.status_code == 404
    assert response.json()["error"]["message"].startswith("Invalid URL (GET /health/)")


def test_a_wrong_parameter_of_the_query_is_400_and_named(daemon: Daemon) -> None:
    response = daemon.get("/v1/batches?limit=many")
    error = response.json()["error"]
    assert response.status_code == 400
    assert error["param"] == "limit"
    assert "valid integer" in error["message"]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("", 200),
        ("text/plain", 415),
        ("text/plain;charset=UTF-8", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
    ],
)
def test_a_body_that_says_it_is_no_json_is_415(
    daemon: Daemon, content_type: str, status: int
) -> None:
    response = daemon.http.post(
        f"{daemon.url}/v1/completions",
        content=f'{{"model": "{MODEL}", "prompt": "hi"}}',
        headers={"content-type": content_type},
    )
    assert response.status_code == status
    if status == 415:
        error = response.json()["error"]
        assert error["code"] == "unsupported_media_type"
        assert content_type.partition(";")[0] in error["message"]
