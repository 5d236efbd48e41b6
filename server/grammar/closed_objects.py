"""Objects of JSON schemas: closed where the schema says nothing about further properties.

By the letter, `{"properties": {"city": ...}}` allows any other property too. Clients do not mean
that: pydantic writes no `additionalProperties`, and a weak model that may add properties does so
until its tokens run out. xgrammar, vLLM's default library, closes such objects too. Every text of
the closed schema is also one of the original.
"""

from collections.abc import Iterator, Mapping
from typing import Any

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMAS = ("items", "additionalItems", "additionalProperties", "contains", "unevaluatedItems")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems", "items")
# An object with one of these says itself which other properties it may have, or is only a part of
# what describes the value.
_OPEN = frozenset(
    {
        *("additionalProperties", "patternProperties", "unevaluatedProperties", "propertyNames"),
        *("allOf", "anyOf", "oneOf", "not", "if", "then", "else", "$ref", "dependentSchemas"),
        "minProperties",
    }
)


def closed(schema: Any) -> Any:
    """Return the schema with `additionalProperties: false` in objects that only list properties.

    Objects without `properties` stay open, as do parts of a combined schema, also by reference: a
    property that one part does not have may be one of another part.
    """
    return _closed(schema, frozenset(_references_of_parts(schema)), is_part=False)


def _closed(schema: Any, parts: frozenset[str], *, is_part: bool, path: str = "#") -> Any:
    if not isinstance(schema, Mapping):
        return schema
    is_part = is_part or path in parts
    result: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword in _MAPS and isinstance(value, Mapping):
            value = {
                name: _closed(each, parts, is_part=False, path=f"{path}/{keyword}/{name}")
                for name, each in value.items()
            }
        elif keyword in _LISTS and isinstance(value, list):
            combined = is_part or _is_combined(schema, keyword)
            value = [_closed(each, parts, is_part=combined) for each in value]
        elif keyword in _SCHEMAS:
            value = _closed(value, parts, is_part=False, path=f"{path}/{keyword}")
        result[keyword] = value
    if not is_part and isinstance(schema.get("properties"), Mapping) and not _OPEN & schema.keys():
        result["additionalProperties"] = False
    return result


def _is_combined(schema: Mapping[str, Any], keyword: str) -> bool:
    """Return whether the schemas of this list describe only a part of the value's properties."""
    if keyword not in ("anyOf", "allOf", "oneOf"):
        return False
    others = {"properties", "allOf", "anyOf", "oneOf", "$ref"} & schema.keys() - {keyword}
    return bool(others) or (keyword == "allOf" and len(schema["allOf"]) > 1)


def _references_of_parts(schema: Any) -> Iterator[str]:
    """Yield the references to schemas that are a part of a combined one."""
    todo: list[tuple[Any, bool]] = [(schema, False)]
    while todo:
        each, is_part = todo.pop()
        if isinstance(each, list):
            todo += [(part, is_part) for part in each]
        if not isinstance(each, Mapping):
            continue
        beside = {"properties", "allOf", "anyOf", "oneOf"} & each.keys()
        if isinstance(each.get("$ref"), str) and (is_part or beside):
            yield each["$ref"]
        for keyword, value in each.items():
            if keyword in _MAPS and isinstance(value, Mapping):
                todo += [(part, False) for part in value.values()]
            elif keyword in _LISTS:
                todo.append((value, is_part or _is_combined(each, keyword)))
            elif keyword in _SCHEMAS:
                todo.append((value, False))
