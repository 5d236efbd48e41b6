"""Unknown fields: ignored with one warning and counted, or refused with their path."""

import logging
from pathlib import Path
from typing import Any

import msgspec
import pytest

from server.http.bodies.body import parse
from server.http.bodies.unknown_fields import FoundFields, UnknownFields
from server.http.errors import ApiError
from server.openai.fields.chat import ChatRequest
from server.openai.fields.completion import CompletionRequest
from server.openai.routes.tokenization import TokenizeRequest
from tests.server.world import Daemon, serving

USER: dict[str, Any] = {"role": "user", "content": "x"}
FUNCTION: dict[str, Any] = {"name": "f"}
CALL: dict[str, Any] = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
# A body with an unknown field, the kind of object and the path of the field.
UNKNOWN: list[tuple[dict[str, Any], str, str]] = [
    ({"chat_id": "1"}, "ChatRequest", "chat_id"),
    ({"thinking": {"type": "enabled"}}, "ChatRequest", "thinking"),
    ({"messages": [USER, USER | {"id": "1"}]}, "ChatMessage", "messages[1].id"),
    (
        {"messages": [USER | {"content": [{"type": "text", "text": "x", "cache_control": {}}]}]},
        "TextPart",
        "messages[0].content[0].cache_control",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL | {"extra": 1}]}]},
        "ToolCall",
        "messages[0].tool_calls[0].extra",
    ),
    (
        {"tools": [{"type": "function", "function": FUNCTION, "cache_control": {"type": "x"}}]},
        "Tool",
        "tools[0].cache_control",
    ),
    (
        {"tools": [{"type": "function", "function": FUNCTION | {"examples": []}}]},
        "FunctionDefinition",
        "tools[0].function.examples",
    ),
    (
        {"tool_choice": {"type": "function", "function": {"name": "f"}, "why": 1}},
        "NamedTool",
        "tool_choice.why",
    ),
    ({"stream": True, "stream_options": {"pad": 1}}, "StreamOptions", "stream_options.pad"),
]


def body(**fields: Any) -> bytes:
    """A chat request."""
    return msgspec.json.encode({"model": "m", "messages": [USER]} | fields)


@pytest.mark.parametrize(("fields", "kind", "path"), UNKNOWN, ids=[path for *_, path in UNKNOWN])
def test_an_unknown_field_is_counted_or_refused_with_its_path(
    fields: dict[str, Any], kind: str, path: str
) -> None:
    counted: list[tuple[str, int]] = []
    lenient = UnknownFields(count=lambda *counts: counted.append(counts))
    parse(ChatRequest, body(**fields), lenient)
    assert counted == [(kind, 1)]
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, body(**fields), UnknownFields(strict=True))
    assert msgspec.json.decode(caught.value.body())["error"] == {
        "message": f"Unrecognized request argument supplied: {path}",
        "type": "invalid_request_error",
        "param": path,
        "code": "unknown_parameter",
    }


@pytest.mark.parametrize(
    ("kind", "fields", "param", "words"),
    [
        (CompletionRequest, {"guided_json": {}}, "guided_json", "'structured_outputs' with 'json'"),
        (CompletionRequest, {"guided_choice": ["a"]}, "guided_choice", "structured_outputs"),
        (CompletionRequest, {"prompt_embeds": "AAAA"}, "prompt_embeds", "text or token ids"),
        (CompletionRequest, {"messages": [USER]}, "messages", "/v1/chat/completions"),
        (ChatRequest, {"guided_regex": "a+"}, "guided_regex", "structured_outputs"),
        (ChatRequest, {"guided_grammar": "x"}, "guided_grammar", "structured_outputs"),
        (ChatRequest, {"kv_transfer_params": {"a": 1}}, "kv_transfer_params", "not transferred"),
        (ChatRequest, {"best_of": 3}, "best_of", "use 'n'"),
        (ChatRequest, {"max_new_tokens": 5}, "max_new_tokens", "use 'max_tokens'"),
        (ChatRequest, {"stop_sequences": ["a"]}, "stop_sequences", "use 'stop'"),
        (ChatRequest, {"system": "Be brief."}, "system", "role 'system'"),
        (ChatRequest, {"messages": [USER | {"images": ["x"]}]}, "messages[0].images", "only text"),
        (ChatRequest, {"messages": [USER | {"prefix": True}]}, "messages[0].prefix", "continue_"),
        (
            ChatRequest,
            {"tools": [{"type": "function", "function": FUNCTION | {"input_schema": {}}}]},
            "tools[0].function.input_schema",
            "'parameters'",
        ),
    ],
)
def test_fields_that_would_change_the_answer_are_refused_in_words(
    kind: type[CompletionRequest | ChatRequest], fields: dict[str, Any], param: str, words: str
) -> None:
    own: dict[str, Any] = {"messages": [USER]} if kind is ChatRequest else {"prompt": "x"}
    with pytest.raises(ApiError) as caught:
        parse(kind, msgspec.json.encode({"model": "m"} | own | fields))
    error = msgspec.json.decode(caught.value.body())["error"]
    assert (error["param"], error["code"]) == (param, "unsupported_parameter")
    assert words in error["message"]
    name = param.rpartition(".")[2]
    for neutral in (None, False, [], ""):
        parse(kind, msgspec.json.encode({"model": "m"} | own | {name: neutral}))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
        ({"structured_outputs": {"regex": "a", "tag": 1}}, "structured_outputs.tag"),
    ],
)
def test_an_unknown_constraint_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError, match=f"supplied: {param}"):
        parse(ChatRequest, body(**fields))


def test_the_fields_of_tokenize_are_ignored_too() -> None:
    assert parse(TokenizeRequest, b'{"prompt": "a", "truncation": true}').prompt == "a"


def test_many_requests_are_one_line_and_strange_names_are_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = 0.0
    unknown = UnknownFields(clock=lambda: now)
    caplog.set_level(logging.WARNING, "tdpipe")
    for number in range(1000):
        parse(ChatRequest, body(**{f"x{number}": 1, "a\nb": 1, "y" * 65: 1}), unknown)
    now = 11.0
    parse(ChatRequest, body(z=1), unknown)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("ignored unknown fields of 1 request: ")
    assert "x0 (ChatRequest)" in first
    assert "(not a name) (ChatRequest)" in first
    assert "\n" not in first
    assert "of 1000 requests: " in second
    assert second.count("(ChatRequest)") <= 8


def test_a_request_with_many_unknown_names_keeps_only_some() -> None:
    found = FoundFields()
    for number in range(1000):
        found.add("ChatMessage", f"n{number}")
    assert (found.counts["ChatMessage"], len(found.names)) == (1000, 8)


def test_the_counter_has_a_label_for_each_kind_of_object(daemon: Daemon) -> None:
    def counted() -> int:
        metrics = daemon.get("/metrics").text.splitlines()
        labels = '{model_name="little",object="CompletionRequest"}'
        name = f"tdpipe_ignored_fields_total{labels} "
        return sum(float(line.removeprefix(name)) for line in metrics if line.startswith(name))

    before = counted()
    assert daemon.complete(chat_id="1", thinking={}).status_code == 200
    assert counted() == before + 2


def test_strict_fields_refuses_and_the_document_says_so(tmp_path: Path) -> None:
    with serving(tmp_path, strict_fields=True) as daemon:
        refused = daemon.complete(chat_id="1")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "chat_id")
        models = daemon.get("/openapi.json").json()["components"]["schemas"]
        for name in ("CompletionRequest", "ChatMessage", "TextPart", "CreateBatch"):
            assert models[name]["additionalProperties"] is False


def test_the_document_allows_what_is_ignored(daemon: Daemon) -> None:
    models = daemon.get("/openapi.json").json()["components"]["schemas"]
    for name in ("CompletionRequest", "ChatMessage", "TextPart", "CreateBatch"):
        assert models[name]["additionalProperties"] is True
    assert models["StructuredOutputs"]["additionalProperties"] is False


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": [USER | {"content": ["hi"]}]}, "messages[0].content[0]", '"hi" (a string)'),
        ({"messages": [USER, "hi"]}, "messages[1]", 'an object, got "hi" (a string)'),
        (
            {"messages": [USER | {"content": [{"type": "text", "text": 5}]}]},
            "messages[0].content[0].text",
            "expected a string, got 5 (an integer)",
        ),
        (
            {"messages": [USER | {"content": [{"type": "text"}]}]},
            "messages[0].content[0].text",
            "Missing required",
        ),
        (
            {"messages": [USER | {"content": [{"type": "video", "text": "x"}]}]},
            "messages[0].content[0].type",
            '"video" (a string)',
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "Missing required"),
        ({"stop": ["a", None]}, "stop[1]", "expected a string, got null"),
        (
            {"tool_choice": {"type": "function", "function": {}}},
            "tool_choice.function.name",
            "Miss",
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "f"}, "custom": 5}},
            "tool_choice.custom",
            "5 (an integer)",
        ),
        ({"logit_bias": {"5": "x" * 100}}, "logit_bias.5", f'"{"x" * 39}... (a string)'),
        ({"structured_outputs": {"json": 5}}, "structured_outputs.json", "an object or a string"),
        ({"n": "2"}, "n", 'expected an integer, got "2" (a string)'),
        ({"n": 1.5}, "n", "expected an integer, got 1.5 (a number)"),
        ({"n": True}, "n", "expected an integer, got true"),
        ({"temperature": 3}, "temperature", "less than or equal to 2, got 3 (an integer)"),
        ({"stream": 1}, "stream", "expected a boolean, got 1 (an integer)"),
    ],
)
def test_an_error_names_the_path_and_what_was_given(
    fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(ApiError) as caught:
        parse(ChatRequest, body(**fields))
    error = msgspec.json.decode(caught.value.body())["error"]
    assert error["param"] == param
    assert f"'{param}'" in error["message"]
    assert words in error["message"]


def test_a_number_without_a_fraction_is_an_integer() -> None:
    fields: dict[str, Any] = {"n": 2.0, "seed": 1.0, "allowed_token_ids": [1.0, 2], "top_k": -1.0}
    given = {"model": "m", "prompt": [[1.0, 2], [3]], "max_tokens": 16.0} | fields
    request = parse(CompletionRequest, msgspec.json.encode(given))
    assert request.prompt == [[1, 2], [3]]
    found = (request.max_tokens, request.n, request.seed, request.allowed_token_ids, request.top_k)
    assert str(found) == "(16, 2, 1, [1, 2], -1)"
    for wrong in ([1.5], [True], [1, 2.5]):
        with pytest.raises(ApiError, match="expected "):
            parse(CompletionRequest, msgspec.json.encode({"model": "m", "prompt": wrong}))
