"""Tool calls are separated from the content, however the text is split into pieces."""

import json
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.call_formats import (
    HERMES,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_LIST,
    QWEN3_XML,
    CallFormat,
    format_of,
)
from server.chat.tool_calls import CallDelta, CallParser
from tests.server.grammar.grammar_readers import walk
from tests.server.splitting import PLACES, cut, texts_of

TOOLS = ("get_weather", "add")


SCHEMAS: list[tuple[str, dict[str, object]]] = [
    (
        "add",
        {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": 0, "maximum": 99},
                "b": {"type": "string", "maxLength": 4},
                "c": {"enum": ["}", {"d": "</tool_call>"}]},
            },
            "required": ["a", "c"],
            "additionalProperties": False,
        },
    ),
    ("get_weather", {"type": "object", "properties": {}, "additionalProperties": False}),
]


class Message(NamedTuple):
    """The content and the calls of a whole text."""

    said: str
    calls: list[tuple[str, str]]


def parse(
    pieces: list[str],
    call_format: CallFormat = HERMES,
    *,
    several: bool = True,
    only: bool = False,
    only_whole: bool = False,
) -> Message:
    parser = CallParser(
        call_format, dict(SCHEMAS), several=several, only_calls=only, only_whole=only_whole
    )
    said = ""
    calls: list[tuple[str, str]] = []
    for text, deltas in [*map(parser.push, pieces), (parser.flush(), [])]:
        said += text
        for delta in deltas:
            _add(calls, delta)
    return Message(said, calls)


def _add(calls: list[tuple[str, str]], delta: CallDelta) -> None:
    if delta.name is not None:
        assert delta.call_index == len(calls), "a call's first part comes in its turn"
        calls.append((delta.name, ""))
    name, arguments = calls[delta.call_index]
    calls[delta.call_index] = (name, arguments + delta.arguments)


def hermes(body: str) -> str:
    return f"<tool_call>\n{body}\n</tool_call>"


ADD = ("add", '{"a": 1, "b": [2, {"c": "}"}]}')
ADD_TEXT = '{"name": "add", "arguments": {"a": 1, "b": [2, {"c": "}"}]}}'


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Seven.", "Seven.", []),
        (" Seven. \n", " Seven. \n", []),
        (hermes(ADD_TEXT), "", [ADD]),
        (f"\n\n{hermes(ADD_TEXT)}\n{hermes(ADD_TEXT)}\n", "", [ADD, ADD]),
        (f"I add.\n{hermes(ADD_TEXT)}", "I add.", [ADD]),
        (f"I add.\n{hermes(ADD_TEXT)}Done.", "I add.\nDone.", [ADD]),
        (hermes('{"arguments": {"a": 1}, "name": "add"}'), "", [("add", '{"a": 1}')]),
        (hermes('{"name": "add"}'), "", [("add", "{}")]),
        (hermes('{"name": "add", "arguments": null}'), "", [("add", "{}")]),
        (hermes('{"name": "add", "arguments": {}}'), "", [("add", "{}")]),
        (hermes('{"name": "add", "arguments": "{\\"a\\": 1}"}'), "", [("add", '{"a": 1}')]),
        (
            hermes('{"id": 7, "name": "add", "arguments": {"a":1}, "x": [1]}'),
            "",
            [("add", '{"a":1}')],
        ),
        (hermes('{"name": "add", "arguments": {}, "parameters": {"a": 1}}'), "", [("add", "{}")]),
        (hermes('{"name": "n\\u00e9", "arguments": {}}'), "", [("né", "{}")]),
        (hermes('{"name": "unknown", "arguments": {}}'), "", [("unknown", "{}")]),
    ],
    ids=range(15),
)
def test_hermes(text: str, said: str, calls: list[tuple[str, str]]) -> None:
    assert parse([text]) == (said, calls)


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>",
        "<tool_call>\nadd(1, 2)\n</tool_call>",
        hermes('{"name": "", "arguments": {}}'),
        hermes('{"arguments": {"a": 1}}'),
        hermes('{"name": "add", "arguments": [1]}'),
        hermes('{"name": "add", "arguments": 1}'),
        hermes('{"name": "\\x", "arguments": {}}'),
        hermes('{"name": "add", "arguments": "\\x"}'),
        hermes("{name: 'add'}"),
        "<tool_call>{",
        '<tool_call>{"name": "add"',
        "a <tool_",
    ],
)
def test_text_that_is_not_a_call_is_content(text: str) -> None:
    assert parse([text]) == (text, [])


@pytest.mark.parametrize(
    ("text", "said", "arguments"),
    [
        ('<tool_call>{"name": "add", "arguments": {"a": "x', "", '{"a": "x'),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}</tool_call>', "", '{"a": 1}'),
        ('<tool_call>{"name": "add", "arguments": {"a": 1</tool_call>', "", '{"a": 1'),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}} Done.', " Done.", '{"a": 1}'),
        ('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_', "", '{"a": 1}'),
    ],
)
def test_a_reported_call_stays_a_call_when_its_end_is_missing(
    text: str, said: str, arguments: str
) -> None:
    assert parse([text]) == (said, [("add", arguments)])


@pytest.mark.parametrize("begun", ["<tool", "<tool_call>", '<tool_call>{"name": "ad'])
def test_an_incomplete_call_after_another_is_not_content(begun: str) -> None:
    assert parse([f"I add.\n{hermes(ADD_TEXT)}\n{begun}"]) == ("I add.", [ADD])
    no_call = f'{begun}"? Done.'
    assert parse([f"{hermes(ADD_TEXT)}\n{no_call}"]) == (f"\n{no_call}", [ADD])


def test_a_call_after_a_broken_begin_is_a_call() -> None:
    assert parse([f"<tool_call>{hermes(ADD_TEXT)}"]) == ("<tool_call>", [ADD])


LLAMA_ADD = '{"name": "add", "parameters": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        (LLAMA_ADD, "", 1),
        (f"\n {LLAMA_ADD}", "", 1),
        (f"<|python_tag|>{LLAMA_ADD}", "", 1),
        (f"<|python_tag|>{LLAMA_ADD}; {LLAMA_ADD}\n{LLAMA_ADD}", "", 3),
        (f"{LLAMA_ADD};<|python_tag|>{LLAMA_ADD}", "", 2),
        (f"{LLAMA_ADD} Done.", " Done.", 1),
        (f"I add: <|python_tag|>{LLAMA_ADD}", "I add:", 1),
        (f"I add: {LLAMA_ADD}", f"I add: {LLAMA_ADD}", 0),
        ('{"name": "Ada", "parameters": {}}', '{"name": "Ada", "parameters": {}}', 0),
        ('{"answer": {"name": "add"}}', '{"answer": {"name": "add"}}', 0),
        ("<|python_tag|>print(1)", "<|python_tag|>print(1)", 0),
        ('{"type": "function", ' + LLAMA_ADD[1:], "", 1),
    ],
)
def test_llama3_json(text: str, said: str, calls: int) -> None:
    assert parse([text], LLAMA3_JSON) == (said, [("add", '{"a": 1}')] * calls)


def test_an_answer_that_is_json_is_content_from_its_first_key_on() -> None:
    parser = CallParser(LLAMA3_JSON, dict(SCHEMAS))
    assert parser.push('{"answer":')[0] == '{"answer":'


def test_arguments_are_returned_as_they_arrive() -> None:
    parser = CallParser(HERMES, dict(SCHEMAS))
    parser.push('<tool_call>{"name": "add", "arguments": ')
    _, (first,) = parser.push('{"a": ')
    assert first[:3] == (0, "add", '{"a": ')
    assert (first.call_id or "").startswith("call_")
    assert parser.push("1") == ("", [CallDelta(0, None, "1")])


@pytest.mark.parametrize("end", range(1, len(hermes(ADD_TEXT)) - len("\n</tool_call>")))
def test_half_a_call_is_none_where_only_whole_ones_are_wanted(end: int) -> None:
    text = f"I add.\n{hermes(ADD_TEXT)[:end]}"
    assert parse([text], only_whole=True) == (text, [])
    assert parse(list(text), only_whole=True) == (text, [])
    assert parse([hermes(ADD_TEXT)], only_whole=True) == ("", [ADD])


def test_without_several_calls_only_the_first_is_returned() -> None:
    text = f"{hermes(ADD_TEXT)}{hermes(ADD_TEXT)} Done."
    assert parse([text], several=False) == (" Done.", [ADD])


ALL = [HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_LIST, QWEN3_XML]
FORMATS = st.sampled_from(ALL)
TEXTS = texts_of(
    "<tool_call>",
    "</tool_call>",
    "<|python_tag|>",
    '{"name": "add", ',
    '"arguments": ',
    '"parameters": {"a": 1}}',
    ADD_TEXT,
    LLAMA_ADD,
    ";",
    "[TOOL_CALLS]",
    "add[ARGS]",
    "[CALL_ID]",
    f"[{ADD_TEXT}, {ADD_TEXT}]",
    "<function=add>\n",
    "<parameter=a>",
    "\n</parameter>",
    "</function>",
)


@settings(deadline=None)
@given(TEXTS, PLACES, FORMATS, st.booleans(), st.booleans())
def test_the_pieces_do_not_matter(
    text: str, places: list[int], call_format: CallFormat, several: bool, only_whole: bool
) -> None:
    def read(pieces: list[str]) -> Message:
        return parse(pieces, call_format, several=several, only_whole=only_whole)

    whole = read([text])
    assert read(cut(text, places)) == whole
    assert read(list(text)) == whole


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from(TOOLS), st.dictionaries(st.text(), JSON, max_size=3)),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_well_formed_calls_are_parsed_exactly(
    calls: list[tuple[str, dict[str, object]]], ascii_only: bool, indent: int | None
) -> None:
    def dump(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    written = [hermes(dump({"name": name, "arguments": args})) for name, args in calls]
    said, read = parse(["Now then.\n", *written])
    assert said == "Now then."
    assert [(name, json.loads(arguments)) for name, arguments in read] == calls
    listed = ", ".join(dump({"name": name, "arguments": args}) for name, args in calls)
    named = "".join(f"[TOOL_CALLS]{name}[ARGS]{dump(args)}" for name, args in calls)
    for text in (f"Now then.[TOOL_CALLS] [{listed}]", f"Now then.{named}"):
        said, read = parse([text], MISTRAL)
        assert said == "Now then."
        assert [(name, json.loads(arguments)) for name, arguments in read] == calls
    written = [dump({"name": name, "parameters": args}) for name, args in calls]
    said, read = parse([";".join(written)], LLAMA3_JSON)
    assert said == ""
    assert [(name, json.loads(arguments)) for name, arguments in read] == calls


def forced_text(call_format: CallFormat, seed: int) -> str:
    """A text of the grammar; without strings in XML, which end only at their closing tag."""
    name, schema = SCHEMAS[0]
    no_text = {"b": {"enum": ["x", "</y>"]}, "c": {"enum": [{"d": "</tool_call>"}]}}
    bounded = schema | {"properties": schema["properties"] | no_text}  # type: ignore[operator]
    tools = [(name, bounded if call_format is QWEN3_XML else schema), *SCHEMAS[1:]]
    return walk(call_format.grammar(tools, {}, several=True), seed)


@pytest.mark.parametrize("call_format", ALL)
@pytest.mark.parametrize("seed", range(8))
def test_texts_of_the_forced_grammar_are_calls(call_format: CallFormat, seed: int) -> None:
    said, calls = parse(list(forced_text(call_format, seed)), call_format)
    assert said == ""
    assert calls
    for name, arguments in calls:
        assert json.loads(arguments).keys() <= ({"a", "b", "c"} if name == "add" else set())


@pytest.mark.parametrize("call_format", ALL)
def test_a_truncated_forced_call_has_no_content(call_format: CallFormat) -> None:
    text = forced_text(call_format, 1)
    assert {parse([text[:at]], call_format, only=True).said for at in range(len(text))} == {""}
    assert {parse([text[:at]], call_format).said for at in range(len(text))} != {""}


def test_a_forced_call_is_single_without_several() -> None:
    grammar = HERMES.grammar(SCHEMAS, {}, several=False)
    assert {len(parse([walk(grammar, seed)]).calls) for seed in range(8)} == {1}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ('<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}', HERMES),
        ("<tool_call>{{ call.function.name }}<arg_key>", None),
        ("<tool_call>\n<function=example>", QWEN3_XML),
        ("[TOOL_CALLS]{{ call.function.name }}[ARGS]", MISTRAL),
        ('[TOOL_CALLS] [{"name": ', MISTRAL_LIST),
        ("{{- '<|python_tag|>' }}", LLAMA3_JSON),
        ("Environment: ipython", LLAMA3_JSON),
        ("{{ messages }}", None),
    ],
)
def test_the_call_format_is_detected_from_the_template(
    template: str, expected: CallFormat | None
) -> None:
    assert format_of(template) is expected


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ('[TOOL_CALLS]add[ARGS]{"a": 1}', "", [("add", '{"a": 1}')]),
        ('I add.[TOOL_CALLS]add[CALL_ID]x1y2z3a4b[ARGS]{"a": 1}', "I add.", [("add", '{"a": 1}')]),
        ('[TOOL_CALLS]add{"a": 1}', "", [("add", '{"a": 1}')]),
        ("[TOOL_CALLS]add[ARGS]{}[TOOL_CALLS]f[ARGS]{} So.", " So.", [("add", "{}"), ("f", "{}")]),
        (f"[TOOL_CALLS] [{ADD_TEXT}]", "", [ADD]),
        (f"[TOOL_CALLS][{ADD_TEXT},\n{ADD_TEXT}] Done.", " Done.", [ADD, ADD]),
        (f"[TOOL_CALLS]{ADD_TEXT}", "", [ADD]),
        ("[TOOL_CALLS]", "[TOOL_CALLS]", []),
        ("[TOOL_CALLS]add[ARGS]", "[TOOL_CALLS]add[ARGS]", []),
        ("[TOOL_CALLS]add it {}", "[TOOL_CALLS]add it {}", []),
        ("[TOOL_CALLS][1, 2]", "[TOOL_CALLS][1, 2]", []),
    ],
)
def test_mistral(text: str, said: str, calls: list[tuple[str, str]]) -> None:
    for call_format in (MISTRAL, MISTRAL_LIST):
        assert parse([text], call_format) == (said, calls)


def test_mistrals_identifiers_have_nine_letters_and_digits() -> None:
    parser = CallParser(MISTRAL, {})
    _, deltas = parser.push("[TOOL_CALLS]add[ARGS]{}[TOOL_CALLS]add[ARGS]{}")
    ids = [delta.call_id or "" for delta in deltas if delta.name]
    assert len(set(ids)) == 2
    assert all(len(id_) == 9 and id_.isalnum() for id_ in ids)


def xml(name: str, **parameters: str) -> str:
    texts = (f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in parameters.items())
    return f"<tool_call>\n<function={name}>\n{''.join(texts)}</function>\n</tool_call>"


TYPED = {
    "text": {"type": "string"},
    "number": {"type": "number"},
    "flag": {"type": "boolean"},
    "list": {"type": "array"},
    "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    "either": {"type": ["integer", "string"]},
    "any": {},
}


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"text": "5"}, {"text": "5"}),
        ({"text": "true"}, {"text": "true"}),
        ({"text": ' a "b"\n</p>\n'}, {"text": ' a "b"\n</p>\n'}),
        ({"text": ""}, {"text": ""}),
        ({"number": "5"}, {"number": 5}),
        ({"number": "5.5"}, {"number": 5.5}),
        ({"flag": "true"}, {"flag": True}),
        ({"flag": "False"}, {"flag": False}),
        ({"flag": "maybe"}, {"flag": "maybe"}),
        ({"list": '[1, {"a": "b"}]'}, {"list": [1, {"a": "b"}]}),
        ({"maybe": "null"}, {"maybe": None}),
        ({"maybe": "5"}, {"maybe": "5"}),
        ({"either": "5"}, {"either": 5}),
        ({"either": "five"}, {"either": "five"}),
        ({"any": "5"}, {"any": 5}),
        ({"any": "five"}, {"any": "five"}),
        ({"unknown": "5"}, {"unknown": "5"}),
        ({"text": "é€", "number": "1"}, {"text": "é€", "number": 1}),
        ({}, {}),
    ],
)
def test_the_types_of_xml_parameters_are_those_of_the_schema(
    parameters: dict[str, str], expected: dict[str, object]
) -> None:
    parser = CallParser(QWEN3_XML, {"f": {"type": "object", "properties": TYPED}})
    text, deltas = parser.push(f"So:\n{xml('f', **parameters)}\nDone.")
    assert text + parser.flush() == "So:\n\nDone."
    assert [delta.name for delta in deltas if delta.name] == ["f"]
    assert json.loads("".join(delta.arguments for delta in deltas)) == expected


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\n<function=>\n</function>\n</tool_call>",
        "<tool_call>\n<parameter=a>1</parameter>",
        "<tool_call>\nadd(1)",
        "<tool_call>\n<function=ad",
    ],
)
def test_xml_that_is_no_call_is_content(text: str) -> None:
    assert parse([text], QWEN3_XML) == (text, [])


def test_several_xml_calls_are_read_in_one_text() -> None:
    text = f"{xml('add', a='1', c='}')}\n{xml('get_weather')}"
    assert parse([text], QWEN3_XML) == ("", [("add", '{"a": 1, "c": "}"}'), ("get_weather", "{}")])
