"""The fields of the API, compared with the official client's: none is missing, none invented."""

import json
import re
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

import pydantic
import pytest
from openai import pagination
from openai._types import SequenceNotStr
from openai.types import Batch as OpenAIBatch
from openai.types import (
    Completion,
    FileDeleted,
    FileObject,
    batch_create_params,
    batch_list_params,
    completion_create_params,
    file_create_params,
    file_list_params,
)
from openai.types import Model as OpenAIModel
from openai.types import responses as openai_responses
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import completion_create_params as chat_create_params
from typing_extensions import get_type_hints, is_typeddict

from server.api_table.api_fields import BODIES, CHAT, COMPLETION, RESPONSES, ApiBody, FieldRow
from server.http.errors import ErrorBody
from server.openai.fields import batch, chat_answer, completion
from tests.server.batches.world import official
from tests.server.openai.chatting import CALL, TOOL, post, stream
from tests.server.world import MODEL, Daemon, events, saying

# The client's types by the titles of bodies. Its pages have only these two fields as an envelope.
CLIENT: dict[str, Any] = {
    "`POST /v1/completions`": completion_create_params.CompletionCreateParamsStreaming,
    "`POST /v1/chat/completions`": chat_create_params.CompletionCreateParamsStreaming,
    "A completion": Completion,
    "A chunk of a completion": Completion,
    "A chat completion": ChatCompletion,
    "A chunk of a chat completion": ChatCompletionChunk,
    "`POST /v1/responses`": openai_responses.response_create_params.ResponseCreateParamsStreaming,
    "A response": openai_responses.Response,
    "`POST /v1/files`": file_create_params.FileCreateParams,
    "`GET /v1/files`": file_list_params.FileListParams,
    "A file": FileObject,
    "A list of files": pagination.SyncCursorPage[FileObject],
    "A deleted file": FileDeleted,
    "`POST /v1/batches`": batch_create_params.BatchCreateParams,
    "`GET /v1/batches`": batch_list_params.BatchListParams,
    "A batch": OpenAIBatch,
    "A list of batches": pagination.SyncCursorPage[OpenAIBatch],
    "A list of models": pagination.SyncPage[OpenAIModel],
}
ENVELOPE = {"first_id", "last_id", "has_more", "object"}
ARRAYS = {list, Iterable, Sequence, SequenceNotStr}
TRANSPARENT = {Union, types.UnionType}
QUALIFIERS = {Annotated, Required, NotRequired}
# The types of a response's items, parts, tools and choices that are supported; the fields of the
# others are not in the table.
OF_RESPONSES = {
    *("message", "function_call", "function_call_output", "reasoning"),
    *("input_text", "output_text", "refusal", "reasoning_text", "summary_text"),
    *("function", "allowed_tools", "text", "json_object", "json_schema"),
}
# Fields that have no type in the client.
ANY_OBJECTS = ("tool_choice.allowed_tools.tools[]", "tool_choice.tools[]")
BESIDE = [body for body in BODIES if body.title in CLIENT]
# A value of each refused field that is not its neutral value.
REFUSED: dict[str, Any] = {
    "suffix": "x",
    "functions": [{"name": "f"}],
    "function_call": "auto",
    "audio": {"voice": "alloy", "format": "mp3"},
    "web_search_options": {"search_context_size": "low"},
    "moderation": {"model": "x"},
    "previous_response_id": "resp_1",
    "conversation": "conv_1",
    "prompt": {"id": "pmpt_1"},
    "context_management": [{"type": "compaction", "compact_threshold": 1000}],
    "response_format": {"type": "json_object"},
    "max_tokens": 5,
    "max_completion_tokens": 5,
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "messages[].audio": [{"role": "assistant", "content": "a", "audio": {"id": "x"}}],
    "messages[].function_call": [
        {"role": "assistant", "content": "a", "function_call": {"name": "f", "arguments": ""}}
    ],
    "messages[].content[].image_url": [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
    ],
    "messages[].content[].input_audio": [
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "x"}}]}
    ],
    "messages[].content[].file": [
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}
    ],
    "messages[].tool_calls[].custom": [
        {"role": "assistant", "tool_calls": [{"id": "x", "type": "custom", "custom": {}}]}
    ],
    "tools[].custom": [{"type": "custom", "custom": {"name": "f"}}],
    "tool_choice.allowed_tools.tools[].custom": {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "auto", "tools": [{"type": "custom", "custom": {}}]},
    },
    "tool_choice.custom": {"type": "custom", "custom": {"name": "f"}},
}


def client_fields(kind: Any, path: str = "") -> Iterator[tuple[str, set[str]]]:
    """Each field of one of the client's types by its path, and its possible values."""
    hints: dict[str, Any] = {}
    if is_typeddict(kind):
        hints = get_type_hints(kind)
    elif isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
        fields = kind.model_fields.items()
        hints = {field.alias or name: field.annotation for name, field in fields}
    if path and "openai.types.responses" in getattr(kind, "__module__", ""):
        types = set(values_of(hints.get("type")))
        if types and types.isdisjoint(OF_RESPONSES):
            return
    for name, hint in hints.items():
        inner = f"{path}.{name}" if path else name
        yield inner, set(values_of(hint))
        yield from client_fields(hint, inner)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in QUALIFIERS:
        yield from client_fields(arguments[0], path)
    elif origin in TRANSPARENT:
        for argument in arguments:
            yield from client_fields(argument, path)
    elif origin in ARRAYS:
        yield from client_fields(arguments[0], f"{path}[]")


def values_of(hint: Any) -> Iterator[str]:
    """The strings among the values of a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        yield from (value for value in arguments if isinstance(value, str))
    elif origin in QUALIFIERS:
        yield from values_of(arguments[0])
    elif origin in TRANSPARENT:
        for argument in arguments:
            yield from values_of(argument)
    elif origin in ARRAYS:
        yield from values_of(arguments[0])


def rows_of(body: ApiBody) -> dict[str, FieldRow]:
    """A body's rows by their paths, with a form's paths in the usual notation."""
    return {re.sub(r"\[(\w+)\]", r".\1", row.path): row for row in body.rows()}


def covers(row: FieldRow, path: str) -> bool:
    """Whether a field is inside one that is not supported, or always empty."""
    is_closed = row.status != "supported" or row.words.startswith(("always", "of the request"))
    return is_closed and row.holds(path)


def test_the_walk_over_the_client_types_sees_nested_fields() -> None:
    chat = dict(client_fields(chat_create_params.CompletionCreateParamsStreaming))
    assert {
        "messages[].content[].image_url.url",
        "messages[].tool_calls[].function.arguments",
        "response_format.json_schema.strict",
        "stream_options.include_obfuscation",
        "tool_choice.allowed_tools.mode",
        "tools[].function.parameters",
    } <= chat.keys()
    assert {"auto", "default", "flex", "scale", "priority"} <= chat["service_tier"]
    whole = dict(client_fields(ChatCompletion))
    assert "usage.completion_tokens_details.reasoning_tokens" in whole
    assert "content_filter" in whole["choices[].finish_reason"]


@pytest.mark.parametrize("body", BESIDE, ids=lambda body: body.title)
def test_every_field_of_the_official_client_is_in_the_table(body: ApiBody) -> None:
    rows = rows_of(body)
    forgotten = [
        path
        for path, _ in client_fields(CLIENT[body.title])
        if path not in rows
        and not any(covers(row, path) for row in rows.values())
        and not any(known.startswith(f"{path}.") for known in rows)  # a form has only the parts
    ]
    assert not forgotten


@pytest.mark.parametrize("body", BESIDE, ids=lambda body: body.title)
def test_a_field_is_marked_as_openais_only_if_its_client_has_it(body: ApiBody) -> None:
    client = {path for path, _ in client_fields(CLIENT[body.title])} | ENVELOPE
    for path, row in rows_of(body).items():
        if path.startswith(ANY_OBJECTS):
            continue
        assert (row.owner == "OpenAI") == (path in client), path


@pytest.mark.parametrize("body", BESIDE, ids=lambda body: body.title)
def test_every_value_of_the_reference_is_documented(body: ApiBody) -> None:
    rows = rows_of(body)
    for path, values in client_fields(CLIENT[body.title]):
        row = rows.get(path)
        if row is None or row.status != "supported" or "only " in row.words:
            continue
        if path == "choices[].delta.role":  # of all roles, only the assistant answers
            values &= {"assistant"}
        beside = path.rpartition(".")[0]
        undocumented = {
            value
            for value in values - words_of(row)
            # A kind of part, tool or choice that is refused has a row of its own.
            if f"{beside}.{value}" not in rows or rows[f"{beside}.{value}"].status == "supported"
        }
        assert not undocumented, path


def words_of(row: FieldRow) -> set[str]:
    """The words of a row, without their punctuation."""
    return set(row.words.replace("`", " ").replace(",", " ").replace(";", " ").split())


OWN: dict[str, Any] = {
    COMPLETION.title: {"prompt": "hi"},
    CHAT.title: {"messages": [{"role": "user", "content": "hi"}]},
    RESPONSES.title: {"input": "hi"},
}


@pytest.mark.parametrize("body", [COMPLETION, CHAT, RESPONSES], ids=lambda body: body.title)
def test_fields_marked_as_refused_are_refused(daemon: Daemon, body: ApiBody) -> None:
    path, own = body.title.strip("`").removeprefix("POST "), OWN[body.title]
    refused = [row.path for row in body.rows() if row.status == "refused"]
    assert refused
    for name in refused:
        field = name.replace("[", ".").partition(".")[0]
        request = {"model": MODEL} | own | {field: REFUSED[name]}
        response = daemon.http.post(daemon.url + path, json=request)
        assert response.status_code == 400, name
        param = response.json()["error"]["param"]
        assert re.sub(r"[.\[].*", "", param) == field, name
        if name == field:
            assert response.json()["error"]["code"] == "unsupported_parameter"


RICH = {"n": 2, "return_token_ids": True, "service_tier": "flex", "stop": ["zzz"]}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("fields", [{}, RICH | {"echo": True, "logprobs": 1, "prompt_logprobs": 1}])
def test_a_completion_has_no_field_that_the_table_lacks(
    daemon: Daemon, fields: dict[str, Any]
) -> None:
    completion.Completion.model_validate(daemon.complete(**fields).json(), extra="forbid")
    chunks = events(daemon.complete(**fields, **WITH_USAGE))
    for chunk in chunks:
        completion.CompletionChunk.model_validate(chunk, extra="forbid")
    assert chunks[-1]["usage"]


@pytest.mark.parametrize("fields", [{}, RICH | {"tools": [TOOL], "logprobs": True}])
def test_a_chat_completion_has_no_field_that_the_table_lacks(
    qwen: Daemon, fields: dict[str, Any]
) -> None:
    qwen.engine.script = saying(f"<think>Well.</think>\n\nhello {CALL}")
    whole = post(qwen, **fields).json()
    chat_answer.ChatCompletion.model_validate(whole, extra="forbid")
    assert whole["choices"][0]["message"]["reasoning"] == "Well."
    for chunk in stream(qwen, **fields, stream_options={"include_usage": True}):
        chat_answer.ChatCompletionChunk.model_validate(chunk, extra="forbid")


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v1/files", batch.FileList),
        ("/v1/batches", batch.BatchList),
        ("/v1/models", completion.ModelList),
        ("/v1/nowhere", ErrorBody),
    ],
)
def test_a_list_has_no_field_that_the_table_lacks(
    daemon: Daemon, path: str, model: type[pydantic.BaseModel]
) -> None:
    with official(daemon) as client:
        line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
        content = json.dumps(line | {"body": {"model": MODEL, "prompt": "hi"}}).encode()
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        client.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
    model.model_validate(daemon.get(path).json(), extra="forbid")
