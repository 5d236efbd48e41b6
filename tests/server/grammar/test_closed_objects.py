"""Objects are closed where nothing can be lost by it."""

from typing import Any

import pytest

from server.grammar.closed_objects import closed
from server.grammar.grammar_text import json_schema
from tests.server.grammar.grammar_readers import accepts

A, B = {"properties": {"a": {"type": "integer"}}}, {"properties": {"b": {"type": "integer"}}}
SHUT: dict[str, Any] = {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (A, A | SHUT),
        ({"type": "object"}, {"type": "object"}),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}} | SHUT),
        (A | {"additionalProperties": True}, A | {"additionalProperties": True}),
        (A | {"patternProperties": {"^b": {}}}, A | {"patternProperties": {"^b": {}}}),
        ({"items": A}, {"items": A | SHUT}),
        ({"prefixItems": [A, B]}, {"prefixItems": [A | SHUT, B | SHUT]}),
        ({"properties": {"x": A}}, {"properties": {"x": A | SHUT}} | SHUT),
        ({"properties": {"properties": A}}, {"properties": {"properties": A | SHUT}} | SHUT),
        ({"additionalProperties": A}, {"additionalProperties": A | SHUT}),
        ({"anyOf": [A, B]}, {"anyOf": [A | SHUT, B | SHUT]}),
        ({"allOf": [A]}, {"allOf": [A | SHUT]}),
        ({"allOf": [A, B]}, {"allOf": [A, B]}),
        (A | {"anyOf": [B, {}]}, A | {"anyOf": [B, {}]}),
        ({"enum": [A]}, {"enum": [A]}),
        ({"const": A}, {"const": A}),
        (True, True),
        (
            {"$defs": {"A": A}, "properties": {"x": {"$ref": "#/$defs/A"}}},
            {"$defs": {"A": A | SHUT}, "properties": {"x": {"$ref": "#/$defs/A"}}} | SHUT,
        ),
        (
            {"$defs": {"A": A, "B": B}, "allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]},
            {"$defs": {"A": A, "B": B}, "allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]},
        ),
        (
            B | {"$ref": "#/$defs/A", "$defs": {"A": A}},
            B | {"$ref": "#/$defs/A", "$defs": {"A": A}},
        ),
    ],
    ids=range(20),
)
def test_objects_that_only_list_properties_are_closed(schema: Any, expected: Any) -> None:
    assert closed(schema) == expected


def test_a_model_cannot_add_properties_without_end() -> None:
    grammar = json_schema(A | {"type": "object", "required": ["a"]})
    assert accepts(grammar, '{"a": 1}')
    assert not accepts(grammar, '{"a": 1, "b": 2}')
    wide = json_schema(A | {"type": "object", "additionalProperties": True})
    assert accepts(wide, '{"a": 1, "b": 2}')
    both = json_schema({"type": "object", "allOf": [A, B]})
    assert accepts(both, '{"a": 1, "b": 2}')
