"""Keywords of schemas: wrong values are named by their path, and patterns ignored or refused."""

import re
from typing import Any

import msgspec
import pytest

from server.grammar.grammars import grammar_of
from server.grammar.schema_keywords import (
    check_keywords,
    check_patterns,
    enforceable,
    is_enforceable,
)
from server.http.errors import ApiError
from server.openai.fields.chat import ChatRequest
from tests.server.openai.chatting import USER, error
from tests.server.world import Daemon

# What pydantic 2.0 to 2.11 write for a `Decimal`.
DECIMAL = r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"
PRICED: dict[str, Any] = {
    "type": "object",
    "properties": {
        "price": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": DECIMAL}]}
    },
    "required": ["price"],
}


@pytest.mark.parametrize(
    "pattern",
    [DECIMAL, "a(?=b)", "(?<!a)b", "(?<=a)b", r"(a)\1", r"\bword\b", "(?>a)", r"(?P<x>a)(?P=x)"],
)
def test_what_needs_more_than_an_automaton_cannot_be_enforced(pattern: str) -> None:
    assert not is_enforceable(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        "^a+$",
        "(?:a|b)",
        "(?P<x>a)",
        "(?i)a",
        r"\(?=",
        r"[(?=]",
        r"[^\](?!]",
        r"\\b",
        r"[\b]",
        "",
        "(",
    ],
)
def test_what_only_looks_like_it_can_be_enforced(pattern: str) -> None:
    assert is_enforceable(pattern)


def test_only_patterns_are_left_out_and_the_schema_is_not_changed() -> None:
    schema = {
        "properties": {
            "pattern": {"type": "string", "pattern": "(?=a)"},
            "b": {"items": [{"pattern": "a", "minLength": 1}, {"pattern": r"\b"}]},
        },
        "patternProperties": {"(?=x)": {}, "x": {"not": {"pattern": "(?=a)"}}},
        "enum": [{"pattern": "(?=a)"}],
        "additionalProperties": False,
    }
    before = msgspec.json.encode(schema)
    assert enforceable(schema) == {
        "properties": {
            "pattern": {"type": "string"},
            "b": {"items": [{"pattern": "a", "minLength": 1}, {}]},
        },
        "patternProperties": {"x": {"not": {}}},
        "enum": [{"pattern": "(?=a)"}],
        "additionalProperties": False,
    }
    assert msgspec.json.encode(schema) == before
    assert enforceable(True) is True


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ({"required": None}, "s.required"),
        ({"properties": None}, "s.properties"),
        ({"properties": {"a": {"required": None}}}, "s.properties.a.required"),
        ({"properties": {"a": None}}, "s.properties.a"),
        ({"items": {"type": None}}, "s.items.type"),
        ({"items": None}, "s.items"),
        ({"anyOf": [{}, {"enum": None}]}, "s.anyOf[1].enum"),
        ({"$defs": {"x": {"minLength": "1"}}}, "s.$defs.x.minLength"),
        ({"properties": {"a": {"maximum": True}}}, "s.properties.a.maximum"),
        ({"type": 5}, "s.type"),
        ({"required": [5]}, "s.required"),
    ],
)
def test_a_keyword_with_a_wrong_value_is_named_by_its_path(schema: Any, path: str) -> None:
    with pytest.raises(ApiError, match=re.escape(f"Invalid value for '{path}': expected ")):
        check_keywords(schema, "s")


def test_values_that_are_data_may_be_null() -> None:
    check_keywords({"default": None, "const": None, "enum": [None], "examples": None}, "s")
    check_keywords({"properties": {"required": {"title": "x"}, "type": True}}, "s")


def wanted(**fields: Any) -> str:
    request = {"model": "m", "messages": [USER]} | fields
    parsed = ChatRequest.model_validate(request)
    return grammar_of(parsed.response_format, parsed.structured_outputs)


def test_a_schema_format_without_strict_ignores_the_pattern_and_with_it_names_it() -> None:
    def form(**more: Any) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": PRICED} | more}

    assert "(?!" not in wanted(response_format=form())
    path = "response_format.json_schema.schema.properties.price.anyOf[1].pattern"
    with pytest.raises(ApiError, match=re.escape(f"'{path}' cannot be enforced")):
        wanted(response_format=form(strict=True))
    path = "structured_outputs.json.properties.price.anyOf[1].pattern"
    with pytest.raises(ApiError, match=re.escape(f"'{path}' cannot be enforced")):
        wanted(structured_outputs={"json": PRICED})
    check_patterns({"properties": {"pattern": {"pattern": "a"}}}, "s")


def tool(**function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "buy", "parameters": PRICED} | function}


def test_tools_follow_the_same_rules(qwen: Daemon) -> None:
    body: dict[str, Any] = {"model": "little", "messages": [USER], "tool_choice": "required"}
    taken = qwen.http.post(
        f"{qwen.url}/v1/chat/completions", json=body | {"tools": [tool()], "max_tokens": 1}
    )
    assert taken.status_code == 200, taken.text
    path = "tools[0].function.parameters"
    assert error(qwen, tools=[tool(strict=True)], tool_choice="required")["param"] == (
        f"{path}.properties.price.anyOf[1].pattern"
    )
    null = {"type": "object", "required": None}
    found = error(qwen, tools=[tool(parameters=null)], tool_choice="required")
    assert found["param"] == f"{path}.required"
    assert found["message"] == (
        f"Invalid value for '{path}.required': expected an array of strings, got null."
    )
