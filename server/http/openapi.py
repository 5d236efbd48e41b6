"""The OpenAPI document: helpers with which routes declare what FastAPI cannot infer."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.http.errors import ErrorBody

_FAILURES = {
    400: "The request is invalid",
    404: "Not found",
    408: "The body was not received, or the answer was not complete, in time",
    409: "Not possible in the current state of the object",
    413: "The body is too large",
    415: "The content type or encoding of the body is not supported",
    416: "The range lies outside of the file",
    429: "The queue is full",
    500: "The server failed",
    503: "Temporarily unavailable",
}
_SCHEMA = "#/components/schemas/{model}"
_BEARER = {"type": "http", "scheme": "bearer"}

GENERATION, MODELS, TOKENS = "Generation", "Models", "Tokens"
FILES, BATCHES, OPERATIONS = "Files", "Batches", "Operations"
_TAGS = {
    GENERATION: "Answers of the model, whole or as a stream of events.",
    MODELS: "The model that is served, under each of its names.",
    TOKENS: "Texts and conversations as tokens of the model, and back.",
    FILES: "The inputs and outputs of batches.",
    BATCHES: "Offline work: many requests in a file, with lower priority than the others.",
    OPERATIONS: "Probes, load, versions and metrics, for those who run the daemon.",
}

Responses = dict[int | str, dict[str, Any]]


def failures(*statuses: int) -> Responses:
    """The error responses of a route, each with OpenAI's error body."""
    return {
        status: {"model": ErrorBody, "description": _FAILURES[status]}
        for status in sorted({*statuses, 500})
    }


def takes(body: type[BaseModel], **examples: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` for a route that parses its body itself; pass the model to `App` as well."""
    content: dict[str, Any] = {"schema": _schema(body)}
    if examples:
        content["examples"] = {name: {"value": value} for name, value in examples.items()}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def streams(chunk: type[BaseModel]) -> dict[str, Any]:
    """The `content` of a response that may be a stream; pass the model to `App` as well.

    The schema describes one event, as in OpenAPI 3.1.
    """
    payload = {"anyOf": [_schema(chunk), _schema(ErrorBody)]}
    data = {"contentMediaType": "application/json", "contentSchema": payload}
    event = {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "string", "anyOf": [{"const": "[DONE]"}, data]}},
    }
    return {"text/event-stream": {"schema": event}}


# Statuses for `failures` of a route that reads its body with `body_reader.read_body`.
BODY_FAILURES = (400, 408, 413, 415)


class App(FastAPI):
    """FastAPI, with the `models` that routes parse and write themselves in the OpenAPI document.

    Each route belongs to one group of the document, a tag.

    With `needs_key`, the document requires an API key for all paths except `open_paths`. With
    `strict_fields`, objects in bodies may have no unknown fields.
    """

    def __init__(
        self,
        *,
        models: Sequence[type[BaseModel]],
        needs_key: bool,
        open_paths: Container[str],
        strict_fields: bool = False,
        **settings: Any,
    ):
        tags = [{"name": name, "description": text} for name, text in _TAGS.items()]
        super().__init__(openapi_tags=tags, **settings)
        self._models = models
        self._needs_key = needs_key
        self._open_paths = open_paths
        self._strict_fields = strict_fields

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            _, schemas = models_json_schema(
                [(model, "validation") for model in self._models], ref_template=_SCHEMA
            )
            document["components"]["schemas"] |= schemas["$defs"]
            if self._strict_fields:
                for schema in document["components"]["schemas"].values():
                    # Only bodies have the key at their root: `server.http.bodies.body.Body`.
                    if schema.get("additionalProperties") is True:
                        schema["additionalProperties"] = False
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    self._correct(path, operation)
            for unused in ("HTTPValidationError", "ValidationError"):
                document["components"]["schemas"].pop(unused, None)
            if self._needs_key:
                document["components"]["securitySchemes"] = {"key": _BEARER}
        return super().openapi()

    def _correct(self, path: str, operation: dict[str, Any]) -> None:
        responses = operation["responses"]
        responses.pop("422", None)  # FastAPI's default; this server answers 400
        if self._needs_key and path not in self._open_paths:
            operation["security"] = [{"key": []}]
            responses["401"] = _failure("The API key is missing or wrong")


def _schema(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _SCHEMA.format(model=model.__name__)}


def _failure(description: str) -> Mapping[str, Any]:
    content = {"application/json": {"schema": _schema(ErrorBody)}}
    return {"description": description, "content": content}
