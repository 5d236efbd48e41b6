"""Keywords of JSON schemas: those with a wrong value are refused by their path in the request.

A `pattern` with look-around or back references cannot be enforced. Older versions of pydantic write
one for each `Decimal`. Without `strict` such patterns are ignored, like other keywords that cannot
be enforced; with it, they are refused. Reference: JSON Schema 2020-12.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from server.http.bodies.field_errors import described
from server.http.errors import invalid

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMAS = (
    *("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not"),
    *("if", "then", "else", "unevaluatedItems", "unevaluatedProperties"),
)
_NUMBERS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_COUNTS = tuple(f"{end}{what}" for end in ("min", "max") for what in ("Length", "Items"))
# Escapes, classes of characters, and groups; the rest is of no interest.
_REGEX_PARTS = re.compile(
    r"\\(?P<escape>.)|\[\^?\]?(?:\\.|[^\]\\])*\]|\((?P<group>\?(?:[=!>(]|<[=!]|P=))?", re.DOTALL
)
_UNSUPPORTED_ESCAPES = frozenset("bBk123456789")


class _Place(NamedTuple):
    schema: Any
    path: str


def check_keywords(schema: Any, path: str) -> None:
    """Raise `ApiError` (400) for the first keyword whose value has the wrong type.

    `path` is the schema's place in the request; the error names the keyword's.
    """
    for place in _walk(schema, path):
        if not isinstance(place.schema, dict | bool):
            _refuse(place.path, "a schema (an object or a boolean)", place.schema)
        if isinstance(place.schema, bool):
            continue
        for keyword, value in place.schema.items():
            known = _VALUES.get(keyword)
            if known is not None and not known[1](value):
                _refuse(f"{place.path}.{keyword}", known[0], value)


def check_patterns(schema: Any, path: str) -> None:
    """Raise `ApiError` (400) for the first pattern that cannot be enforced."""
    for place in _walk(schema, path):
        own, *keys = _patterns(place) or [None]
        if not all(map(is_enforceable, (own, *keys))):
            keyword = "patternProperties" if is_enforceable(own) else "pattern"
            name = f"{place.path}.{keyword}"
            message = (
                f"'{name}' cannot be enforced: look-around, word boundaries and back references "
                "are not supported."
            )
            raise invalid(message, name, "invalid_value")


def enforceable(schema: Any) -> Any:
    """Return the schema without patterns that cannot be enforced."""
    if all(is_enforceable(pattern) for place in _walk(schema, "") for pattern in _patterns(place)):
        return schema
    return _enforceable(schema)


def is_enforceable(pattern: object) -> bool:
    """Whether a regular expression has no construct that needs more than an automaton."""
    return not isinstance(pattern, str) or not any(
        part["group"] or (part["escape"] or "") in _UNSUPPORTED_ESCAPES
        for part in _REGEX_PARTS.finditer(pattern)
        if part["group"] or part["escape"]
    )


def _patterns(place: _Place) -> list[object]:
    if not isinstance(place.schema, dict):
        return []
    return [place.schema.get("pattern"), *_map(place.schema.get("patternProperties"))]


def _enforceable(schema: Any) -> Any:
    """The same for a schema that has such a pattern; recurses as deep as the schema is nested."""
    if not isinstance(schema, dict):
        return schema
    kept: dict[str, Any] = {}
    for keyword, value in schema.items():
        if keyword == "pattern" and not is_enforceable(value):
            continue
        if keyword in _MAPS and isinstance(value, dict):
            names = value if keyword != "patternProperties" else filter(is_enforceable, value)
            value = {name: _enforceable(value[name]) for name in names}
        elif keyword in (*_LISTS, "items") and isinstance(value, list):
            value = [_enforceable(part) for part in value]
        elif keyword in _SCHEMAS:
            value = _enforceable(value)
        kept[keyword] = value
    return kept


def _walk(schema: Any, path: str) -> Iterator[_Place]:
    """Yield the schema and all schemas in it, in their order, without recursion."""
    places = [_Place(schema, path)]
    while places:
        place = places.pop()
        yield place
        if isinstance(place.schema, dict):
            places += reversed(list(_inner(place)))


def _inner(place: _Place) -> Iterator[_Place]:
    for keyword, value in place.schema.items():
        path = f"{place.path}.{keyword}"
        if keyword in _MAPS:
            yield from (_Place(each, f"{path}.{name[:64]}") for name, each in _map(value).items())
        elif keyword in (*_LISTS, "items") and isinstance(value, list):
            yield from (_Place(each, f"{path}[{i}]") for i, each in enumerate(value))
        elif keyword in _SCHEMAS:
            yield _Place(value, path)


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _refuse(path: str, wanted: str, given: object) -> None:
    message = f"Invalid value for '{path}': expected {wanted}, got {described(given)}."
    raise invalid(message, path, "invalid_value")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_MAPS, ("an object of schemas", lambda value: isinstance(value, dict))),
    **dict.fromkeys(_LISTS, ("an array of schemas", lambda value: isinstance(value, list))),
    **dict.fromkeys(_NUMBERS, ("a number", _is_number)),
    **dict.fromkeys(_COUNTS, ("a number", _is_number)),
    **dict.fromkeys(
        ("$ref", "pattern", "format"), ("a string", lambda value: isinstance(value, str))
    ),
    "required": ("an array of strings", _is_texts),
    "enum": ("an array", lambda value: isinstance(value, list)),
    "type": ("a string or an array of strings", lambda v: isinstance(v, str) or _is_texts(v)),
}
