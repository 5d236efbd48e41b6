"""OpenAI's own document of the routes that the server has.

The types of the library `openai` are generated from the reference, so that their JSON schemas are
the reference's bodies, answers and events, as of the library's version. Ranges of numbers are not
in the types.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from openai.types import (
    Batch,
    Completion,
    CompletionCreateParams,
    CreateEmbeddingResponse,
    EmbeddingCreateParams,
    FileDeleted,
    FileObject,
    Model,
    ModerationCreateParams,
    ModerationCreateResponse,
)
from openai.types.batch_create_params import BatchCreateParams
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat import CompletionCreateParams as Chat
from openai.types.responses import Response, ResponseCreateParams, ResponseStreamEvent
from openai.types.shared import ErrorObject
from pydantic import TypeAdapter

_REFERENCE = "#/components/schemas/{model}"


class Operation(NamedTuple):
    """One operation of the reference; the types of its body, its answer and its events."""

    method: str
    path: str
    answer: Any
    body: Any = None
    event: Any = None
    is_list: bool = False
    example: Mapping[str, Any] = {}


PROMPT = {"prompt": "hi"}
MESSAGES = {"messages": [{"role": "user", "content": "hi"}]}
INPUT = {"input": "hi"}
OPERATIONS = (
    Operation(
        "post", "/v1/completions", Completion, CompletionCreateParams, Completion, example=PROMPT
    ),
    Operation(
        "post", "/v1/chat/completions", ChatCompletion, Chat, ChatCompletionChunk, example=MESSAGES
    ),
    Operation(
        "post", "/v1/responses", Response, ResponseCreateParams, ResponseStreamEvent, example=INPUT
    ),
    Operation("get", "/v1/models", Model, is_list=True),
    Operation("get", "/v1/models/{model}", Model),
    Operation("get", "/v1/files", FileObject, is_list=True),
    Operation("get", "/v1/files/{file_id}", FileObject),
    Operation("delete", "/v1/files/{file_id}", FileDeleted),
    Operation("get", "/v1/batches", Batch, is_list=True),
    Operation("post", "/v1/batches", Batch, BatchCreateParams),
    Operation("get", "/v1/batches/{batch_id}", Batch),
    Operation("post", "/v1/batches/{batch_id}/cancel", Batch),
    # Not served: the answer is an error in the reference's form.
    Operation("post", "/v1/embeddings", CreateEmbeddingResponse, EmbeddingCreateParams),
    Operation("post", "/v1/moderations", ModerationCreateResponse, ModerationCreateParams),
)


def reference_document(models: list[str], ids: Mapping[str, str]) -> dict[str, Any]:
    """The document, with the names of served models, and the ids of objects for paths."""
    kinds = {
        (operation.method, operation.path, part): getattr(operation, part)
        for operation in OPERATIONS
        for part in ("body", "answer", "event")
    }
    kinds["", "", "error"] = ErrorObject
    adapters = [(key, "validation", TypeAdapter(kind)) for key, kind in kinds.items() if kind]
    schemas, definitions = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE)
    components = definitions["$defs"]
    for schema in components.values():
        # A body takes any model's name in the reference; only served ones are interesting.
        if "Params" in schema.get("title", "") and "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": models}
    # The library has one type for whole completions and events; OpenAI's events have null here.
    choice = components["CompletionChoice"]["properties"]
    choice["finish_reason"] = {"anyOf": [choice["finish_reason"], {"type": "null"}]}
    error = schemas[("", "", "error"), "validation"]
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        parts = {
            part: schema
            for ((method, path, part), _), schema in schemas.items()
            if (method, path) == (operation.method, operation.path)
        }
        described = _described(operation, parts, error, ids)
        if operation.example:
            (content,) = described["requestBody"]["content"].values()
            values = {"whole": {"stream": False}, "streamed": {"stream": True}}
            content["examples"] = {
                name: {"value": {"model": models[0], **operation.example, **more}}
                for name, more in values.items()
            }
        paths.setdefault(operation.path, {})[operation.method] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "OpenAI's reference", "version": "1"},
        "paths": paths,
        "components": {"schemas": components},
    }


def _described(
    operation: Operation, parts: Mapping[str, Any], error: Any, ids: Mapping[str, str]
) -> dict[str, Any]:
    answer = parts["answer"]
    if operation.is_list:
        data = {"type": "array", "items": answer}
        answer = _object(object={"const": "list"}, data=data)
    content = {"application/json": {"schema": answer}}
    if "event" in parts:
        event = {"anyOf": [parts["event"], _object(error=error)]}
        parsed = {"contentMediaType": "application/json", "contentSchema": event}
        data = {"type": "string", "anyOf": [{"const": "[DONE]"}, parsed]}
        content["text/event-stream"] = {"schema": _object(data=data)}
    refusal = {"application/json": {"schema": _object(error=error)}}
    described: dict[str, Any] = {
        "parameters": [
            {
                "in": "path",
                "name": name,
                "required": True,
                "schema": {"type": "string"},
                "example": value,
            }
            for name, value in ids.items()
            if f"{{{name}}}" in operation.path
        ],
        "responses": {
            "200": {"description": "OK", "content": content},
            "4XX": {"description": "Refused", "content": refusal},
        },
    }
    if "body" in parts:
        body = {"application/json": {"schema": parts["body"]}}
        described["requestBody"] = {"required": True, "content": body}
    return described


def _object(**properties: Any) -> dict[str, Any]:
    """The schema of an object that has all of these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}
