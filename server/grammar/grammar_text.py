"""Grammars as text: the allowed answers, in the form that the last stage's library parses.

The text is llguidance's serialised grammar; its kinds are documented in
https://github.com/guidance-ai/llguidance/tree/main/docs. These functions validate nothing, and all
but `lark_of` run in time linear in their input.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

# One space, or a new line and its indentation: this allows every usual style, and a model cannot
# generate white space without end. Deeper nesting gets less indentation.
WHITESPACE = r" |\n( {0,20}|\t{0,5})"
_EBNF = '{"grammars":[{"ebnf_grammar":'

Schema = Mapping[str, Any]


def json_schema(
    schema: Schema | bool,
    *,
    lenient: bool = False,
    whitespace: str | None = WHITESPACE,
) -> str:
    """JSON that follows a schema (draft 2020-12), with properties in the schema's order.

    `lenient` ignores keywords that cannot be enforced. `whitespace` is a regular expression for the
    white space between the parts, None for none.
    """
    return _serialised(json_schema=_with_options(schema, whitespace, lenient))


def json_object(whitespace: str | None = WHITESPACE) -> str:
    """Any JSON object."""
    return json_schema({"type": "object"}, whitespace=whitespace)


def regex(pattern: str) -> str:
    """Texts that the whole expression matches (Rust's syntax: no look-around, no references)."""
    text: str = LLMatcher.grammar_from_regex(pattern)
    return text


def choice(texts: Sequence[str]) -> str:
    """One of the texts."""
    alternatives = " | ".join(map(_literal, texts))
    return _serialised(lark_grammar=f"start: CHOICE\nCHOICE: {alternatives}")


def lark(text: str) -> str:
    """A grammar in llguidance's dialect of Lark."""
    return _serialised(lark_grammar=text)


def ebnf(text: str) -> str:
    """A grammar in llama.cpp's GBNF, which is also what vLLM calls EBNF; see `lark_of`.

    The library does not know this kind: the server converts it.
    """
    return _serialised(ebnf_grammar=text)


def is_ebnf(grammar: str) -> bool:
    """Whether the grammar is one of `ebnf`'s."""
    return grammar.startswith(_EBNF)


def lark_of(grammar: str) -> str:
    """Convert one of `ebnf`'s grammars to Lark. Raises `ValueError`.

    Some texts of 16 KiB take seconds: do not call it on the event loop.
    """
    (part,) = msgspec.json.decode(grammar)["grammars"]
    try:
        return lark(any_to_lark(part["ebnf_grammar"]))
    except MemoryError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # The converter raises bare Exceptions.
    except Exception as error:
        raise ValueError(str(error)) from None


def forced_tool_calls(
    begin: str,
    end: str,
    tools: Sequence[tuple[str, Schema | None]],
    arguments_key: str = "arguments",
    several: bool = True,
    *,
    between: str = "\n",
    special_tokens: Mapping[str, int] | None = None,
    whitespace: str | None = None,
) -> str:
    """One call of a tool, or several: `begin {"name": .., "arguments": ..} end`.

    A tool is its name and its arguments' schema; `$ref`s in it start at its own root. `between`
    separates calls. Special tokens of the model in these texts must be in `special_tokens` with
    their ids, because a special token is not text. Without `whitespace`, the JSON of a call has the
    layout of training data: that of Python's `json.dumps`, or compact.
    """
    ids, options = special_tokens or {}, _options(whitespace, lenient=True)
    if not whitespace:
        options |= {"item_separator": ", ?", "key_separator": ": ?"}
    head, tail, gap = _sequence(begin, ids), _sequence(end, ids), _sequence(between, ids)
    calls = " | ".join(f"tool_{i}" for i in range(len(tools)))
    lines = [
        f"start: call ({gap} call)*" if several else "start: call",
        f"call: {head} ({calls}) {tail}",
    ]
    for i, (name, schema) in enumerate(tools):
        # A call is one JSON rule, not Lark with JSON in it: where two alternatives begin with a
        # brace, as in `either`, the library distinguishes them by the kind of rule, and the first
        # kind wins.
        call = {
            "type": "object",
            "properties": {
                "name": {"const": name},
                arguments_key: _rebased(
                    {**(schema or {}), "type": "object"}, f"#/properties/{arguments_key}"
                ),
            },
            "required": ["name", arguments_key],
            "additionalProperties": False,
        }
        lines.append(f"tool_{i}: %json {_json({**call, 'x-guidance': options})}")
    return lark("\n".join(lines))


def either(content: str, calls: str) -> str:
    """Either of two grammars, each of which has one part.

    If both may begin with the same JSON, their white space must be the same: the library follows
    one kind of it at a time.
    """
    parts = {"content": content, "calls": calls}
    named = [
        {**msgspec.json.decode(grammar)["grammars"][0], "name": name}
        for name, grammar in parts.items()
    ]
    return _json({"grammars": [{"lark_grammar": "start: @content | @calls"}, *named]})


def after_reasoning(
    grammar: str, begin: str, end: str, special_tokens: Mapping[str, int] | None = None
) -> str:
    """Reasoning up to `end`, such as `</think>`, followed by a text of the grammar.

    The prompt may have begun the reasoning; otherwise `begin` is allowed first. `special_tokens` as
    for `forced_tool_calls`.
    """
    ids = special_tokens or {}
    opened = f"({_sequence(begin, ids)})? " if begin in ids else ""  # any text is allowed anyway
    if end in ids:
        thought = f"thought: /(?s:.*)/ {_sequence(end, ids)}"
    else:
        thought = f"thought[suffix={_literal(end)}]: /(?s:.*)/"
    rules = f"start: {opened}thought GAP @answer\n{thought}\nGAP: /\\n{{0,4}}/"
    first, *others = msgspec.json.decode(grammar)["grammars"]
    return _json({"grammars": [{"lark_grammar": rules}, {**first, "name": "answer"}, *others]})


def _with_options(schema: Schema | bool, whitespace: str | None, lenient: bool) -> Schema | bool:
    """The schema with the library's options, which count only at its root."""
    if isinstance(schema, bool):
        return schema
    return {**schema, "x-guidance": _options(whitespace, lenient)}


def _options(whitespace: str | None, lenient: bool) -> dict[str, Any]:
    options = {"whitespace_pattern": whitespace} if whitespace else {"whitespace_flexible": False}
    return {"coerce_one_of": True, "lenient": lenient, **options}


def _rebased(schema: Any, root: str) -> Any:
    """The schema, or a part of it, with references that are valid when it is moved to `root`."""
    if isinstance(schema, list):
        return [_rebased(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: root + part[1:] if _is_reference(key, part) else _rebased(part, root)
        for key, part in schema.items()
    }


def _is_reference(key: str, part: Any) -> bool:
    return key == "$ref" and isinstance(part, str) and (part == "#" or part.startswith("#/"))


def _serialised(**grammar: Any) -> str:
    return _json({"grammars": [grammar]})


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _literal(text: str) -> str:
    """A text as a Lark string, which is a JSON string except for DEL."""
    return _json(text).replace("\x7f", r"\u007f")


def _sequence(text: str, special_tokens: Mapping[str, int]) -> str:
    """A text with special tokens in it, as the sequence of a Lark rule."""
    if not text:
        return ""
    if not special_tokens:
        return _literal(text)
    longest_first = sorted(special_tokens, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return " ".join(
        f"<[{special_tokens[part]}]>" if part in special_tokens else _literal(part)
        for part in parts
        if part
    )
