"""Grammars of tool calls: the texts around the calls, and three forms of a call itself.

A tool is given by its name and the schema of its arguments; `$ref`s are relative to the root of
this schema. Special tokens are allowed by their ids, because they are not text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.grammar.closed_objects import closed
from server.grammar.grammar_text import (
    Schema,
    as_json,
    json_options,
    lark,
    literal,
    rebased,
    sequence,
)

Tools = Sequence[tuple[str, Schema | None]]


@dataclass(frozen=True)
class CallTexts:
    """The texts before, after and between calls, around all of them, and within one."""

    before: str = ""
    after: str = ""
    between: str = ""
    begin: str = ""
    end: str = ""
    inner: str = ""


def calls(
    texts: CallTexts,
    bodies: Sequence[Sequence[str]],
    special_tokens: Mapping[str, int],
    *,
    several: bool,
) -> str:
    """Allow one call, or several; each of the bodies has the rules of one tool's calls."""
    ids = special_tokens
    head, tail, gap = (sequence(text, ids) for text in (texts.before, texts.after, texts.between))
    begin, end = sequence(texts.begin, ids), sequence(texts.end, ids)
    more = f"({gap} call)*" if several else ""
    lines = [
        f"start: {begin} call {more} {end}",
        f"call: {head} ({' | '.join(f'tool_{i}' for i in range(len(bodies)))}) {tail}",
    ]
    if texts.inner:
        lines.append(f"inner: {sequence(texts.inner, ids)}")
    return lark("\n".join([*lines, *(rule for rules in bodies for rule in rules)]))


def json_objects(tools: Tools, arguments_key: str, whitespace: str | None) -> list[list[str]]:
    """Return the rules of calls as JSON objects with a name and arguments.

    Without `whitespace`, the JSON has the layout of training data: `json.dumps`'s, or compact.
    """
    # A call is one JSON rule, not a Lark rule that contains JSON: if two alternatives begin with a
    # brace, as in `either`, and are different kinds of rules, the library follows only the first.
    objects = (
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                arguments_key: rebased(_arguments(schema), f"#/properties/{arguments_key}"),
            },
            "required": ["name", arguments_key],
            "additionalProperties": False,
        }
        for name, schema in tools
    )
    return [[_json_rule(f"tool_{i}", each, whitespace)] for i, each in enumerate(objects)]


def named_objects(tools: Tools, whitespace: str | None) -> list[list[str]]:
    """Return the rules of calls as a name, the inner text and the arguments as a JSON object."""
    return [
        [
            f"tool_{i}: {literal(name)} inner arguments_{i}",
            _json_rule(f"arguments_{i}", _arguments(schema), whitespace),
        ]
        for i, (name, schema) in enumerate(tools)
    ]


def xml_functions(tools: Tools, whitespace: str | None) -> list[list[str]]:
    """Return the rules of calls in Qwen3-Coder's XML, with parameters in the schema's order.

    A parameter that may be a string is any text up to its closing tag.
    """
    return [
        _xml_function(i, name, schema or {}, whitespace) for i, (name, schema) in enumerate(tools)
    ]


def _xml_function(i: int, name: str, schema: Schema, whitespace: str | None) -> list[str]:
    parameters = schema.get("properties")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    required = schema.get("required") or ()
    sequence_, rules = [literal(f"<function={name}>\n")], []
    for j, (key, part) in enumerate(parameters.items()):
        rule = f"value_{i}_{j}"
        parameter = f"{literal(f'<parameter={key}>')} {rule}"
        sequence_.append(parameter if key in required else f"({parameter})?")
        rules += _xml_value(rule, schema, key, part, whitespace)
    return [f"tool_{i}: {' '.join(sequence_)} {literal('</function>')}", *rules]


def _xml_value(rule: str, schema: Schema, key: str, part: Any, whitespace: str | None) -> list[str]:
    end = "\n</parameter>\n"
    choices = part.get("enum") if isinstance(part, Mapping) else None
    if choices and all(isinstance(choice, str) for choice in choices):
        texts = " | ".join(literal(f"\n{choice}{end}") for choice in choices)
        return [f"{rule}: {texts}"]
    if "string" in json_types(part):
        return [f"{rule}[suffix={literal(end)}]: /\\n(?s:.*)/"]
    # References are relative to the root of the tool's schema, which must be a part of this one.
    pointer = key.replace("~", "~0").replace("/", "~1")
    value = {
        "$defs": {"tool": rebased(closed(schema), "#/$defs/tool")},
        "$ref": f"#/$defs/tool/properties/{pointer}",
    }
    return [
        f'{rule}: "\\n" json_{rule} {literal(end)}',
        _json_rule(f"json_{rule}", value, whitespace),
    ]


def json_types(schema: Any) -> frozenset[str]:
    """Return the JSON types that a schema names, of any alternative; empty if it names none."""
    if not isinstance(schema, Mapping):
        return frozenset()
    named = schema.get("type", ())
    types = {named} if isinstance(named, str) else set(named)
    for value in (*(schema.get("enum") or ()), *([schema["const"]] if "const" in schema else ())):
        types.add(json_type(value))
    for keyword in ("anyOf", "oneOf"):
        for alternative in schema.get(keyword) or ():
            types |= json_types(alternative)
    return frozenset(types)


def json_type(value: Any) -> str:
    """Return the name of a value's JSON type."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    kinds = {int: "integer", float: "number", str: "string", list: "array"}
    return kinds.get(type(value), "object")


def _arguments(schema: Schema | None) -> Schema:
    return {**closed(schema or {}), "type": "object"}


def _json_rule(name: str, schema: Schema, whitespace: str | None) -> str:
    options = json_options(whitespace, lenient=True)
    if not whitespace:
        options |= {"item_separator": ", ?", "key_separator": ": ?"}
    return f"{name}: %json {as_json({**schema, 'x-guidance': options})}"
