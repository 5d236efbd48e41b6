"""The fields of a JSON schema by their paths, such as `stream_options.include_usage`.

`[]` stands for any element of an array. A field with several shapes has the fields of all of them.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

Schema = Mapping[str, Any]


class SchemaField(NamedTuple):
    """A field, its description, and its values if they are enumerated."""

    path: str
    words: str
    values: tuple[str, ...]


def fields_of(model: type[BaseModel], mode: JsonSchemaMode = "validation") -> list[SchemaField]:
    """All fields of a model and its nested models, each path once, parents before children."""
    schema = model.model_json_schema(mode=mode)
    found: dict[str, SchemaField] = {}
    for field in _walk(schema, schema.get("$defs", {}), ""):
        known = found.get(field.path, SchemaField(field.path, "", ()))
        values = tuple(dict.fromkeys(known.values + field.values))
        found[field.path] = SchemaField(field.path, known.words or field.words, values)
    return list(found.values())


def _walk(schema: Schema, models: Schema, prefix: str) -> Iterator[SchemaField]:
    for shape, path in _shapes(schema, models, prefix):
        for name, inner in shape.get("properties", {}).items():
            field = f"{path}.{name}" if path else name
            values = tuple(_values(inner, models))
            yield SchemaField(field, inner.get("description", ""), values)
            yield from _walk(inner, models, field)


def _shapes(schema: Schema, models: Schema, path: str) -> Iterator[tuple[Schema, str]]:
    """The shapes of a value, with references resolved and arrays opened."""
    if "$ref" in schema:
        schema = models[schema["$ref"].rpartition("/")[2]]
    yield schema, path
    for other in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _shapes(other, models, path)
    if "items" in schema:
        yield from _shapes(schema["items"], models, f"{path}[]")


def _values(schema: Schema, models: Schema) -> Iterator[str]:
    """The strings that a field may have."""
    for shape, _ in _shapes(schema, models, ""):
        named = [*shape.get("enum", ()), *([shape["const"]] if "const" in shape else ())]
        yield from (value for value in named if isinstance(value, str))
