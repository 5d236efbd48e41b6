"""Grammars as text: the allowed answers, in the format that llguidance parses on the last stage.

The text is llguidance's serialised grammar; the kinds of grammars are documented in
https://github.com/guidance-ai/llguidance/tree/main/docs. These functions validate nothing, and all
but `lark_of` run in time linear in their input.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from server.grammar.closed_objects import closed

# One space, or a new line and its indentation. This allows every usual style, and prevents a model
# from generating white space without end. Deeply nested JSON cannot be fully indented.
WHITESPACE = r" |\n( {0,20}|\t{0,5})"
# Strings, comments, regular expressions, names of tokens.
_LARK_TOKENS = re.compile(r'"(?:\\.|[^"\\])*"|(?:#|//)[^\n]*|/(?:\\.|[^/\\])+/|<[^<>\s]+>')
_EBNF = '{"grammars":[{"ebnf_grammar":'

Schema = Mapping[str, Any]


def json_schema(
    schema: Schema | bool,
    *,
    lenient: bool = False,
    whitespace: str | None = WHITESPACE,
) -> str:
    """Allow JSON that follows a schema (draft 2020-12), with properties in the schema's order.

    Objects that only list properties have no others, see `closed_objects`.

    With `lenient`, keywords that cannot be enforced are ignored. `whitespace` is a regular
    expression for the white space between the parts; None allows no white space.
    """
    return _serialised(json_schema=_with_options(schema, whitespace, lenient))


def json_object(whitespace: str | None = WHITESPACE) -> str:
    """Allow any JSON object."""
    return json_schema({"type": "object"}, whitespace=whitespace)


def regex(pattern: str) -> str:
    """Allow texts that match as a whole (Rust's syntax: no look-around, no back references)."""
    text: str = LLMatcher.grammar_from_regex(pattern)
    return text


def choice(texts: Sequence[str]) -> str:
    """Allow one of the texts."""
    alternatives = " | ".join(map(literal, texts))
    return _serialised(lark_grammar=f"start: CHOICE\nCHOICE: {alternatives}")


def lark(text: str) -> str:
    """Return a grammar in llguidance's dialect of Lark."""
    return _serialised(lark_grammar=text)


def ebnf(text: str) -> str:
    """Return a grammar in llama.cpp's GBNF, which vLLM calls EBNF; see `lark_of`.

    The library does not support this kind, so the server converts it.
    """
    return _serialised(ebnf_grammar=text)


def is_ebnf(grammar: str) -> bool:
    """Return whether the grammar was made by `ebnf`."""
    return grammar.startswith(_EBNF)


def lark_of(grammar: str) -> str:
    """Convert a grammar made by `ebnf` to Lark. Raises `ValueError`.

    Some texts of 16 KiB take seconds: do not call it on the event loop.
    """
    (part,) = msgspec.json.decode(grammar)["grammars"]
    try:
        return lark(any_to_lark(part["ebnf_grammar"]))
    except MemoryError:
        raise
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # The converter raises plain `Exception`s.
    except Exception as error:
        raise ValueError(str(error)) from None


def with_token_ids(grammar: str, named_ids: Mapping[str, int]) -> str:
    """Write the names of tokens in Lark, such as `<tool_call>`, as ids: `<[151657]>`.

    The library knows the names of special tokens only. `named_ids` are those of other added tokens.
    """
    if not any(name in grammar for name in named_ids):
        return grammar

    def with_id(found: re.Match[str]) -> str:
        return f"<[{named_ids[found[0]]}]>" if found[0] in named_ids else found[0]

    whole = msgspec.json.decode(grammar)
    for part in whole["grammars"]:
        if "lark_grammar" in part:
            part["lark_grammar"] = _LARK_TOKENS.sub(with_id, part["lark_grammar"])
    return as_json(whole)


def either(content: str, calls: str) -> str:
    """Allow either of two grammars, each of which has one part.

    If both may begin with the same JSON, their white space must be the same, because the library
    follows only one kind of white space at a time.
    """
    parts = {"content": content, "calls": calls}
    named = [
        {**msgspec.json.decode(grammar)["grammars"][0], "name": name}
        for name, grammar in parts.items()
    ]
    return as_json({"grammars": [{"lark_grammar": "start: @content | @calls"}, *named]})


def after_reasoning(
    grammar: str,
    begin: str,
    end: str,
    ids: Mapping[str, int] | None = None,
    *,
    opened: bool = True,
    budget: int | None = None,
) -> str:
    """Allow reasoning up to `end`, such as `</think>`, followed by a text of the grammar.

    With `opened`, the prompt has begun the reasoning, and `begin` may be repeated; otherwise the
    reasoning begins with `begin` and may be left out. `ids` are the model's added tokens. An empty
    grammar allows any tokens.

    After `budget` tokens of reasoning, only `end` is allowed. This needs an `end` that is a token:
    raises `ValueError`.
    """
    known = ids or {}
    if budget is not None and end not in known:
        raise ValueError("the end of the reasoning is not one token")
    thought, rules = _thought(end, known, budget)
    head = sequence(begin, known)
    # If `begin` is text, the reasoning may contain it anyway.
    head = head if not opened else f"({head})?" if begin in known else ""
    lines = [f"reasoning: {head} {thought} GAP", *rules, r"GAP: /\n{0,4}/"]
    if grammar:
        start = "start: reasoning @answer" if opened else "start: reasoning? @answer"
        first, *others = msgspec.json.decode(grammar)["grammars"]
        parts = [{**first, "name": "answer"}, *others]
    else:
        start = (
            "start: reasoning any" if opened else f"start: reasoning any | {_unless(begin, known)}"
        )
        lines.append("any: <[*]>*")
        parts = []
    return as_json({"grammars": [{"lark_grammar": "\n".join([start, *lines])}, *parts]})


def _thought(end: str, ids: Mapping[str, int], budget: int | None) -> tuple[str, list[str]]:
    """Return the reasoning with its end as a sequence of Lark, and the rules that this needs."""
    if end not in ids:
        return "thought", [f"thought[suffix={literal(end)}]: /(?s:.*)/"]
    limit = "" if budget is None else f"[max_tokens={budget}]"
    # The parser finds the end in the text, so other tokens must not spell it.
    spelled = re.escape(end).replace("/", r"\/")
    text = f"TEXT: /(?s:.*)/ & ~/(?s:.*){spelled}(?s:.*)/"
    return f"thought <[{ids[end]}]>", [f"thought{limit}: TEXT", text]


def _unless(begin: str, ids: Mapping[str, int]) -> str:
    """Return any tokens that do not begin with `begin`, which is a token."""
    return f"(<[^{ids[begin]}]> any)?" if begin in ids else "any"


def _with_options(schema: Schema | bool, whitespace: str | None, lenient: bool) -> Schema | bool:
    """Add the library's options to the schema; they take effect only at its root."""
    if isinstance(schema, bool):
        return schema
    return {**closed(schema), "x-guidance": json_options(whitespace, lenient)}


def json_options(whitespace: str | None, lenient: bool) -> dict[str, Any]:
    """Return the library's options for JSON, a keyword of the schema."""
    options = {"whitespace_pattern": whitespace} if whitespace else {"whitespace_flexible": False}
    return {"coerce_one_of": True, "lenient": lenient, **options}


def rebased(schema: Any, root: str) -> Any:
    """Return the schema, or a part of it, with references that are valid under `root`."""
    if isinstance(schema, list):
        return [rebased(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        key: root + part[1:] if _is_reference(key, part) else rebased(part, root)
        for key, part in schema.items()
    }


def _is_reference(key: str, part: Any) -> bool:
    return key == "$ref" and isinstance(part, str) and (part == "#" or part.startswith("#/"))


def _serialised(**grammar: Any) -> str:
    return as_json({"grammars": [grammar]})


def as_json(value: Any) -> str:
    """Return a value as compact JSON."""
    return msgspec.json.encode(value).decode()


def literal(text: str) -> str:
    """Return a text as a Lark string, which is a JSON string except for DEL."""
    return as_json(text).replace("\x7f", r"\u007f")


def sequence(text: str, special_tokens: Mapping[str, int]) -> str:
    """Return a text that contains special tokens as the sequence of a Lark rule."""
    if not text:
        return ""
    if not special_tokens:
        return literal(text)
    longest_first = sorted(special_tokens, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return " ".join(
        f"<[{special_tokens[part]}]>" if part in special_tokens else literal(part)
        for part in parts
        if part
    )
