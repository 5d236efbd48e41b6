"""Chats that are refused in words, and fields that make no difference."""

from pathlib import Path
from typing import Any

import pytest

from tests.server.openai.chatting import TOOL, USER, choice, error, prompt_of, submitted
from tests.server.templates import CHATML, chatty
from tests.server.world import TOKENIZER, Daemon, saying, serving

CUSTOM_CALL = {"id": "call_1", "type": "custom", "custom": {"name": "x", "input": "y"}}


def function(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A tool."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def nested(depth: int) -> dict[str, Any]:
    """A schema of so many objects in one another."""
    schema: dict[str, Any] = {}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "'system'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "role 'user' needs 'content'"),
    (
        {"messages": [{"role": "assistant"}]},
        "messages[0].content",
        "role 'assistant' needs 'content'",
    ),
    (
        {"messages": [{"role": "tool", "content": "2"}]},
        "messages[0].tool_call_id",
        "needs 'tool_call_id'",
    ),
    ({"messages": [{"role": "function", "content": "2"}]}, "messages[0].name", "needs 'name'"),
    ({"messages": [USER | {"tool_calls": []}]}, "messages[0].tool_calls", "only an assistant"),
    (
        {"messages": [USER | {"content": 7}]},
        "messages[0].content",
        "a string or an array of text parts",
    ),
    (
        {"messages": [USER | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "no images",
    ),
    (
        {"messages": [USER | {"content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages[0].content[0].type",
        "no images, audio",
    ),
    ({"functions": [{"name": "add"}]}, "functions", "use 'tools'"),
    ({"function_call": "auto"}, "function_call", "use 'tool_choice'"),
    ({"audio": {"voice": "x", "format": "wav"}}, "audio", "supports only text"),
    ({"modalities": ["text", "audio"]}, "modalities[1]", "'text'"),
    ({"web_search_options": {"x": 1}}, "web_search_options", "has no web search"),
    ({"moderation": {"model": "x"}}, "moderation", "has no moderation"),
    (
        {"tools": [{"type": "custom", "custom": {"name": "x"}}]},
        "tools[0].type",
        "only tools of the type 'function', not 'custom'",
    ),
    (
        {"messages": [USER, {"role": "assistant", "tool_calls": [CUSTOM_CALL]}]},
        "messages[1].tool_calls[0].type",
        "only tools of the type 'function', not 'custom'",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "custom", "custom": {"name": "x"}}},
        "tool_choice",
        "expected 'none'",
    ),
    ({"tools": [TOOL, TOOL]}, "tools", "two functions named 'add'"),
    (
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "pattern",
    ),
    ({"tool_choice": "required"}, "tool_choice", "only allowed when 'tools'"),
    ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "expected 'none'"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        "tool_choice",
        "names 'sub'",
    ),
    (
        {"tools": [TOOL, function("x", {"type": "string"})]},
        "tools[1].function.parameters",
        'must be "object", not "string"',
    ),
    (
        {"tools": [function("x", {"properties": 5}), TOOL], "tool_choice": "required"},
        "tools[0].function.parameters.properties",
        "expected an object of schemas, got 5 (an integer)",
    ),
    (
        {"tools": [TOOL, function("x", {"$ref": "#/$defs/y", "$defs": {"y": {"type": "null"}}})]}
        | {"tool_choice": "required"},
        "tools[1].function.parameters",
        "'arguments' is unsatisfiable",
    ),
    (
        {"tools": [TOOL, function("x", nested(121))]},
        "tools[1].function.parameters",
        "'tools[1].function.parameters' is nested more than 120 levels deep",
    ),
    ({"allowed_token_ids": [0], "min_tokens": 5}, "allowed_token_ids", "only tokens that end"),
    (
        {"allowed_token_ids": [7], "stop_token_ids": [7], "min_tokens": 1},
        "allowed_token_ids",
        "only tokens that end",
    ),
    (
        {"allowed_token_ids": TOKENIZER.encode("x"), "bad_words": ["x"]},
        "allowed_token_ids",
        "forbids all",
    ),
    (
        {"structured_outputs": {"grammar": "root ::= "}},
        "structured_outputs",
        "matches nothing but the empty text",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "'json_object'"),
    ({"top_logprobs": 2}, "top_logprobs", "only allowed when 'logprobs'"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "must not exceed 20"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_completion_tokens": 8192}, "max_tokens", "maximum context length"),
    ({"messages": [{"role": "user", "content": "hi" * 9000}]}, "messages", "context length"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "cannot be streamed"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "exclude each other",
    ),
    ({"chat_template": "{{ 1 }}"}, "chat_template", "--trust-request-chat-template"),
    ({"chat_template": "{{ 1 }}", "tools": [TOOL]}, "chat_template", "is not accepted"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "must not hold 'tools'"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "greater than 'max_tokens'"),
    ({"service_tier": "gold"}, "service_tier", "'flex'"),
]


@pytest.mark.parametrize(("body", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_request_is_400_and_names_the_field(
    qwen: Daemon, body: dict[str, Any], param: str | None, words: str
) -> None:
    found = error(qwen, **body)
    assert found["param"] == param
    assert words in found["message"]
    assert found["type"] == "invalid_request_error"


def test_the_deepest_schema_that_is_accepted_can_be_followed(qwen: Daemon) -> None:
    body = {"tools": [function("x", nested(120))], "tool_choice": "required"}
    assert submitted(qwen, **body).sampling.grammar


def test_tokens_that_end_the_answer_are_allowed_where_it_may_end(qwen: Daemon) -> None:
    assert submitted(qwen, allowed_token_ids=[0])
    assert submitted(qwen, allowed_token_ids=[0], min_tokens=5, ignore_eos=True)
    assert submitted(qwen, allowed_token_ids=[0, 7], min_tokens=5)


@pytest.mark.parametrize(
    "body",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": True, "safety_identifier": "x"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "verbosity": "low"},
        {"prediction": {"type": "content", "content": "hello"}, "modalities": ["text"]},
        {"functions": [], "audio": None, "tools": [], "tool_choice": "auto", "stop": None},
        {"parallel_tool_calls": False, "reasoning_effort": "high", "top_logprobs": None},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}, USER]},
        {"messages": [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER]},
    ],
    ids=range(7),
)
def test_what_makes_no_difference_is_accepted(qwen: Daemon, body: dict[str, Any]) -> None:
    qwen.engine.script = saying("hello")
    assert choice(qwen, **body)["message"]["content"] == "hello"


def test_what_the_template_refuses_is_400(tmp_path: Path) -> None:
    with serving(tmp_path, tokenizer=chatty(CHATML)) as daemon:
        messages = [USER, {"role": "tool", "tool_call_id": "1", "content": "2"}]
        found = error(daemon, messages=messages)
        no_tools = error(daemon, tools=[TOOL])
    assert found["code"] == "chat_template_refusal"
    assert "I do not know the role tool" in found["message"]
    assert "shows no tools" in no_tools["message"]


def test_a_requests_own_template_is_asked_whether_it_shows_tools(tmp_path: Path) -> None:
    own, blind = "{{ tools[0].function.name }}", "{{ messages[0].content }}"
    settings = {"trust_request_chat_template": True}
    with serving(tmp_path, saying("hello"), tokenizer=chatty(CHATML), **settings) as daemon:
        assert prompt_of(submitted(daemon, tools=[TOOL], chat_template=own)) == "add"
        found = error(daemon, tools=[TOOL], chat_template=blind)
    assert "shows no tools" in found["message"]


def test_a_model_without_a_template_still_completes(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        assert error(daemon)["code"] == "no_chat_template"
        assert daemon.complete().status_code == 200
