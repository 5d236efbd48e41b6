"""What /v1/responses refuses, and that the error has the path of the field at fault."""

from typing import Any

import pytest

from tests.server.openai.responding import TOOL, error, post
from tests.server.world import Daemon

USER = {"role": "user", "content": "hi"}


def item(**fields: Any) -> dict[str, Any]:
    return {"input": [USER, fields]}


def content(*parts: Any) -> dict[str, Any]:
    return item(role="user", content=list(parts))


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"input": None}, "input", "Missing required parameter: 'input'"),
    ({"input": 7}, "input", "expected a string or an array of items"),
    ({"input": []}, "input", "must have 1 to"),
    ({"input": ["hi"]}, "input[0]", "expected an object"),
    (item(type="item_reference", id="msg_1"), "input[1].type", "stores nothing"),
    (item(id="msg_1"), "input[1].type", "stores nothing"),
    (item(type="web_search_call", id="ws_1"), "input[1].type", "not 'web_search_call'"),
    (item(type=["message"], role="user"), "input[1].type", "types message"),
    (item(role="tool", content="x"), "input[1].role", "should be 'user', 'assistant'"),
    (item(role="user"), "input[1].content", "Missing required parameter"),
    (item(role="user", content=7), "input[1].content", "expected an array"),
    (content({"type": "input_image", "image_url": "x"}), "input[1].content[0].type", "no images"),
    (
        content({"type": "input_text", "text": "x"}, {"type": "input_file", "file_id": "x"}),
        "input[1].content[1].type",
        "no images",
    ),
    (content("hi"), "input[1].content[0]", "no images"),
    (content({"type": "input_text"}), "input[1].content[0].text", "Missing required parameter"),
    (content({"type": "input_text", "text": 7}), "input[1].content[0].text", "expected a string"),
    (
        item(type="function_call", name="add", arguments="{}"),
        "input[1].call_id",
        "Missing required parameter",
    ),
    (
        item(type="function_call_output", call_id="x", output=[{"type": "input_image"}]),
        "input[1].output[0].type",
        "no images",
    ),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "only tools of the type 'function'"),
    ({"tools": [TOOL, {"type": "custom", "name": "x"}]}, "tools[1].type", "'custom'"),
    (
        {"tools": [TOOL | {"parameters": {"type": "string"}}]},
        "tools[0].parameters",
        'must be "object"',
    ),
    ({"tools": [TOOL, TOOL]}, "tools", "two functions named 'add'"),
    ({"tool_choice": "required"}, "tool_choice", "only allowed when 'tools'"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "sub"}},
        "tool_choice",
        "names 'sub'",
    ),
    (
        {"tools": [TOOL], "tool_choice": {"type": "web_search_preview"}},
        "tool_choice.type",
        "'web_search_preview'",
    ),
    (
        {
            "tools": [TOOL],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "mcp", "server_label": "x"}],
            },
        },
        "tool_choice.tools[0].type",
        "'mcp'",
    ),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice", "'none', 'auto', 'required'"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        "text.format.schema",
        "Missing required parameter",
    ),
    (
        {"text": {"format": {"type": "json_schema", "schema": {}}}},
        "text.format.name",
        "Missing required parameter",
    ),
    (
        {
            "text": {
                "format": {
                    "type": "json_schema",
                    "name": "x",
                    "strict": True,
                    "schema": {"type": "array", "uniqueItems": True},
                }
            }
        },
        "text.format",
        "'text.format' ",
    ),
    ({"background": True}, "background", "stores no responses"),
    ({"previous_response_id": "resp_1"}, "previous_response_id", "whole conversation as 'input'"),
    ({"conversation": {"id": "conv_1"}}, "conversation", "whole conversation as 'input'"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "stores no prompts"),
    ({"max_tokens": 5}, "max_tokens", "use 'max_output_tokens'"),
    ({"max_completion_tokens": 5}, "max_completion_tokens", "use 'max_output_tokens'"),
    ({"response_format": {"type": "json_object"}}, "response_format", "use 'text.format'"),
    ({"max_output_tokens": 0}, "max_output_tokens", "greater than or equal to 1"),
    ({"max_output_tokens": 100_000}, "max_output_tokens", "maximum context length is 8192"),
    ({"max_output_tokens": 2, "min_tokens": 3}, "min_tokens", "'max_output_tokens'"),
    ({"input": "hi " * 9000}, "input", "maximum context length is 8192"),
    ({"include": ["logprobs"]}, "include[0]", "should be 'message.output_text.logprobs'"),
    ({"top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"metadata": {"a": "b" * 513}}, "metadata.a", "at most 512 characters"),
    ({"n": 2}, "n", "less than or equal to 1"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options", "only allowed when"),
]


@pytest.mark.parametrize(("body", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_answered_is_400_and_names_the_field(
    qwen: Daemon, body: dict[str, Any], param: str, words: str
) -> None:
    failure = error(qwen, **body)
    assert words in failure["message"]
    assert failure["param"] == param
    assert failure["type"] == "invalid_request_error"


def test_an_error_of_the_template_names_the_input(daemon: Daemon) -> None:
    assert error(daemon)["param"] == "input"  # this model has no template


def test_another_model_is_404(qwen: Daemon) -> None:
    response = post(qwen, model="gpt-4o")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    "body",
    [
        {"input": ""},
        {"input": [USER | {"id": "1", "status": "completed", "type": "message"}]},
        {"input": [USER, {"type": "reasoning", "summary": [], "id": "rs_1"}]},
        {"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]},
        {"tools": [], "tool_choice": "auto"},
        {"tools": [{"type": "function", "name": "f", "parameters": None, "strict": None}]},
        {"tools": [TOOL | {"async": False, "defer_loading": False}], "tool_choice": "none"},
        {"text": {}},
        {"text": {"format": {"type": "text"}, "verbosity": "high"}},
        {"reasoning": {"effort": None, "summary": "detailed", "mode": "standard"}},
        {"truncation": "auto"},
        {"background": False, "store": True, "conversation": None, "prompt": None},
        {"include": ["file_search_call.results", "reasoning.encrypted_content"]},
        {"service_tier": "ultrafast"},
        {"max_tool_calls": 1, "user": "u", "prompt_cache_retention": "24h"},
        {"top_logprobs": 0, "metadata": None, "instructions": None},
    ],
)
def test_what_has_no_effect_is_accepted(qwen: Daemon, body: dict[str, Any]) -> None:
    response = post(qwen, **body)
    assert response.status_code == 200, response.text
