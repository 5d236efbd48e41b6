"""Grammars as text: which texts each of them accepts and rejects."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.grammar.call_grammar import CallTexts, Tools, calls, json_objects
from server.grammar.grammar_text import (
    WHITESPACE,
    after_reasoning,
    choice,
    ebnf,
    either,
    json_object,
    json_schema,
    lark,
    lark_of,
    regex,
)
from tests.server.grammar.grammar_readers import SPECIAL, SPECIAL_ID, accepts

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"$ref": "#/$defs/years"}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "$defs": {"years": {"type": "integer", "minimum": 0}},
}


@pytest.mark.parametrize(
    ("value", "indent"), [({"name": "Ada", "age": 36}, i) for i in (None, 0, 2, 4, "\t")]
)
def test_json_is_accepted_in_every_usual_layout(value: Any, indent: int | str | None) -> None:
    assert accepts(json_schema(PERSON), json.dumps(value, indent=indent))
    assert accepts(json_schema(PERSON), json.dumps(value, separators=(",", ":")))


@pytest.mark.parametrize(
    "text",
    ['{"name": "Ada"}', '{"age": 36, "name": "Ada"}', '{"name": "Ada", "age": -1}', '{"name": 1'],
)
def test_json_that_violates_the_schema_is_rejected(text: str) -> None:
    assert not accepts(json_schema(PERSON), text)


def test_white_space_is_limited() -> None:
    assert not accepts(json_object(), '{  "a": 1}')
    assert not accepts(json_object(), '{\n\n"a": 1}')
    assert not accepts(json_object(), '{"a": 1} ')


def test_the_client_may_set_the_white_space() -> None:
    compact, wide = '{"name":"Ada","age":36}', '{   "name":"Ada","age":36}'
    assert accepts(json_schema(PERSON, whitespace=None), compact)
    assert not accepts(json_schema(PERSON, whitespace=None), '{"name": "Ada","age":36}')
    assert accepts(json_schema(PERSON, whitespace=" {3}"), wide)


def test_a_client_s_own_options_for_the_library_do_not_count() -> None:
    schema = PERSON | {"x-guidance": {"whitespace_pattern": "[ ]+"}}
    assert not accepts(json_schema(schema), '{   "name":"Ada","age":36}')


def test_any_object_is_an_object() -> None:
    assert accepts(json_object(), '{"a": [1, {"b": null}]}')
    assert not accepts(json_object(), "[1]")
    assert accepts(json_schema(True), "[1]")


def test_one_of_several_is_any_of_them() -> None:
    assert accepts(json_schema({"oneOf": [{"type": "string"}, {"minLength": 3}]}), '"abcd"')


def test_keywords_that_cannot_be_enforced_are_ignored_only_if_lenient() -> None:
    schema = {"type": "array", "uniqueItems": True}
    assert accepts(json_schema(schema, lenient=True), "[1, 1]")
    with pytest.raises(AssertionError, match="uniqueItems"):
        accepts(json_schema(schema), "[]")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [(r"[a-c]+/\d", "abc/7"), (r"^ab$", "ab"), ("a\nb|é{2}", "éé"), (r'"\\"', '"\\"'), ("", "")],
)
def test_an_expression_must_match_the_whole_text(pattern: str, text: str) -> None:
    assert re.fullmatch(pattern, text)
    assert accepts(regex(pattern), text)
    assert not accepts(regex(pattern), text + "!")


@given(st.lists(st.text(max_size=8), min_size=1, max_size=4))
def test_a_choice_is_one_of_the_texts(texts: list[str]) -> None:
    grammar = choice(texts)
    assert all(accepts(grammar, text) for text in texts)
    assert not accepts(grammar, max(texts, key=len) + "!")


def test_a_grammar_may_be_in_lark_or_in_ebnf() -> None:
    sums = ["1+1", "12+(3+4)"]
    in_lark = lark('start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[0-9]+/')
    in_ebnf = lark_of(ebnf('root ::= term ("+" term)*\nterm ::= [0-9]+ | "(" root ")"'))
    for text in sums:
        assert accepts(in_lark, text)
        assert accepts(in_ebnf, text)
    assert not accepts(in_lark, "1+")
    assert not accepts(in_ebnf, "1+")


@pytest.mark.parametrize("text", ['root ::= "a', "root ::= b", "root ::= " + "(" * 5000])
def test_invalid_ebnf_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        lark_of(ebnf(text))


TOOLS = [("person", PERSON), ("person_more", {"properties": {"q": {"enum": [1]}}}), ("stop", None)]


def forced(
    begin: str,
    end: str,
    tools: Tools,
    key: str = "arguments",
    *,
    several: bool = True,
    between: str = "\n",
    special_tokens: dict[str, int] | None = None,
    whitespace: str | None = None,
) -> str:
    """Calls as JSON objects between two texts."""
    bodies = json_objects(tools, key, whitespace)
    return calls(CallTexts(begin, end, between), bodies, special_tokens or {}, several=several)


def call(name: str, arguments: str, key: str = "arguments") -> str:
    """As a model writes it."""
    return f'{{"name": "{name}", "{key}": {arguments}}}'


def test_one_of_the_tools_must_be_called_by_its_schema() -> None:
    grammar = forced("<tool_call>", "</tool_call>", TOOLS, several=False)
    fine = [
        call("person", '{"name": "Ada", "age": 36}'),
        call("person_more", '{"q": 1}'),
        call("stop", "{}"),
    ]
    for text in fine:
        assert accepts(grammar, f"<tool_call>{text}</tool_call>")
        assert not accepts(grammar, text)
    for text in (call("person", "{}"), call("per", "{}"), call("person_more", '{"q": 2}'), "hi"):
        assert not accepts(grammar, f"<tool_call>{text}</tool_call>")


def test_a_call_has_the_layout_of_training_data() -> None:
    grammar = forced("", "", TOOLS)
    value = {"name": "person", "arguments": {"name": "Ada", "age": 36}}
    assert accepts(grammar, json.dumps(value))
    assert accepts(grammar, json.dumps(value, separators=(",", ":")))
    assert not accepts(grammar, json.dumps(value, indent=1))


def test_several_calls_come_one_after_another() -> None:
    one = f"<tool_call>\n{call('stop', '{}')}\n</tool_call>"
    arguments = ("<tool_call>\n", "\n</tool_call>", TOOLS)
    assert accepts(forced(*arguments, several=True), f"{one}\n{one}\n{one}")
    assert not accepts(forced(*arguments, several=False), f"{one}\n{one}")
    assert not accepts(forced(*arguments, several=True), "")


def test_calls_may_have_no_marks_and_another_key() -> None:
    grammar = forced("", "", TOOLS, "parameters", several=True, between="; ")
    one = call("stop", "{}", "parameters")
    assert accepts(grammar, f"{one}; {one}")


def test_a_mark_that_is_a_special_token_is_that_token() -> None:
    ids = {SPECIAL: SPECIAL_ID}
    grammar = forced(SPECIAL, "", TOOLS, several=False, special_tokens=ids)
    assert accepts(grammar, SPECIAL_ID, call("stop", "{}"))
    assert not accepts(grammar, call("stop", "{}"))
    assert not accepts(grammar, "begin", call("stop", "{}"))


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (json_schema(PERSON), '{"name": "Ada", "age": 36}'),
        (regex("[0-9]+"), "36"),
        (lark("start: a\na: /[0-9]+/"), "36"),
    ],
)
def test_after_reasoning_the_answer_follows_its_grammar(answer: str, text: str) -> None:
    grammar = after_reasoning(answer, "<think>", "</think>")
    assert accepts(grammar, f"<think>Well,\n</th {{ 36\n</think>\n\n{text}")
    assert accepts(grammar, f"</think>{text}")
    assert not accepts(grammar, text)
    assert not accepts(grammar, f"<think></think>\n\n{text} or so")


def test_reasoning_may_be_marked_with_special_tokens() -> None:
    ids = {SPECIAL: SPECIAL_ID, "<|end|>": 0}
    grammar = after_reasoning(regex("[0-9]+"), SPECIAL, SPECIAL, ids)
    assert accepts(grammar, SPECIAL_ID, "hm", SPECIAL_ID, "\n12")
    assert accepts(grammar, "hm", SPECIAL_ID, "12")
    assert not accepts(grammar, "12")


@pytest.mark.parametrize(("begin", "end"), [("<tool_call>\n", "\n</tool_call>"), ("", "")])
@pytest.mark.parametrize(
    ("said", "text", "wrong"),
    [
        (json_schema(PERSON), '{"name": "Ada", "age": 36}', '{"name": "Ada"}'),
        (json_schema(PERSON, whitespace=None), '{"name":"Ada","age":36}', '{"name": "Ada"'),
        (json_schema({"type": "array"}), '[{"name": {"x": 1}}]', "{}"),
        (regex("[a-z{]+"), "well{", "Well"),
    ],
)
def test_either_of_two_grammars_may_be_followed(
    said: str, text: str, wrong: str, begin: str, end: str
) -> None:
    called = forced(begin, end, TOOLS, several=True, whitespace=WHITESPACE)
    one = begin + call("person", '{"name": "Ada", "age": 36}') + end
    for both in (either(said, called), either(called, said)):
        for whole, before in (
            (both, ""),
            (after_reasoning(both, "<think>", "</think>"), "Well.</think>\n\n"),
        ):
            assert accepts(whole, before + text)
            assert accepts(whole, before + one)
            assert accepts(whole, f"{before}{one}\n{one}")
            assert not accepts(whole, before + wrong)
            assert not accepts(whole, f"{before}{begin}{call('unknown', '[]')}{end}")


def test_references_in_a_tool_s_schema_are_from_its_own_root() -> None:
    tree = {"properties": {"left": {"$ref": "#"}, "$ref": {"enum": ["#/$ref"]}}}
    grammar = forced("", "", [("grow", tree)])
    assert accepts(grammar, call("grow", '{"left": {"left": {}, "$ref": "#/$ref"}}'))
    assert not accepts(grammar, call("grow", '{"left": {"left": 1}}'))
    assert not accepts(grammar, call("grow", '{"$ref": 1}'))
