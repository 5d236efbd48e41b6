"""The checker's process: what it finds, and that nothing a client sends holds it up for good."""

import gc
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from server import grammar_checker
from server.grammar_checker import CheckedVocabulary, CheckerError, GrammarChecker
from server.grammar_text import choice, json_schema, lark, regex
from tests.checkpoints import make_tokenizer
from tests.server.grammar_readers import READER
from tests.server.world import TOKENIZER

VOCABULARY = CheckedVocabulary(TOKENIZER.serialised or "", TOKENIZER.eos_token_ids)
FINE = regex("[a-z]+")


@pytest.fixture(scope="module")
def checker() -> Iterator[GrammarChecker]:
    made = GrammarChecker(VOCABULARY)
    yield made
    made.close()


def nested(depth: int) -> dict[str, Any]:
    """Objects in objects."""
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
            "required": ["children"],
        }
    },
}


@pytest.mark.parametrize(
    "grammar",
    [
        FINE,
        regex(""),
        regex("(a+)+b"),
        regex("((a{1,100}){1,100}){1,100}"),
        regex(r"(.|\n)*a.{20}"),
        regex("[a-z]{1,1000000}"),
        choice(["yes", "no", ""]),
        json_schema(TREE),
        json_schema(nested(30)),
        json_schema({"type": "string", "maxLength": 10**9}),
        json_schema({"type": "array", "items": {}, "minItems": 10**6, "maxItems": 10**9}),
        json_schema({"enum": [f"number {i}" for i in range(8000)]}),
        lark("start: <|begin|> /[a-z]+/"),
        lark('start: x\nx: x x | "a" | ""'),
    ],
    ids=lambda grammar: grammar[14:54],
)
def test_what_can_be_followed_is_fine(grammar: str, checker: GrammarChecker) -> None:
    assert checker.check(grammar) == ""


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (regex("(a"), "unclosed group"),
        (regex(r"(a)\1"), "backreferences are not supported"),
        (regex("(?=a)b"), "look-around"),
        (regex(r"[^\s\S]"), "matches nothing"),
        (regex("a{1000000}"), "too slow"),
        (regex("(" * 10_000 + "a" + ")" * 10_000), "nested parentheses"),
        (lark("start: nowhere"), "nowhere"),
        (lark("start: <|nowhere|>"), "special token"),
        (lark("start: " + "(" * 10_000), "deeply nested"),
        (lark("start: a\na: /(?s:.*)/ & ~/(?s:.*)(a.{40}|b.{40})(?s:.*)/"), ""),
        (json_schema(False), "Unsatisfiable"),
        (json_schema({"$ref": "#"}), "matches nothing"),
        (json_schema({"type": "string", "format": "shoe"}), "shoe"),
        (json_schema({"allOf": [{"type": "string"}, {"type": "null"}]}), "Unsatisfiable"),
        (json_schema({"type": "nothing"}), "nothing"),
        (json_schema({"properties": 5}), "cannot be used"),
        (
            '{"grammars": [{"json_schema": ' + '{"items":' * 5000 + "{}" + "}" * 5000 + "}]}",
            "limit",
        ),
        ("no grammar", "cannot be used"),
        ("", "cannot be used"),
    ],
    ids=lambda value: value[14:54],
)
def test_what_cannot_be_followed_is_told_in_one_line(
    grammar: str, words: str, checker: GrammarChecker
) -> None:
    complaint = checker.check(grammar)
    assert words in complaint
    assert 0 < len(complaint) < 400
    assert "\n" not in complaint


def test_who_takes_too_long_is_cut_off_and_the_next_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checker = GrammarChecker(VOCABULARY)
    assert checker.check(FINE) == ""
    with monkeypatch.context() as patch:
        patch.setattr(grammar_checker, "CHECK_TIMEOUT_S", 0.001)
        assert "takes longer" in checker.check(regex("a{1000000}"))
    assert checker.check(FINE) == ""
    checker.close()


def children() -> list[psutil.Process]:
    """The checkers' processes."""
    return [
        child
        for child in psutil.Process().children()
        if "server.grammar_checker" in child.cmdline()
    ]


def test_a_process_that_is_gone_is_replaced() -> None:
    before = children()
    checker = GrammarChecker(VOCABULARY)
    assert checker.check(FINE) == ""
    (child,) = [child for child in children() if child not in before]
    child.kill()
    psutil.wait_procs([child])
    assert checker.check(FINE) == ""
    checker.close()


def test_no_process_outlives_its_checker() -> None:
    before = children()
    checker = GrammarChecker(VOCABULARY)
    assert checker.check(FINE) == ""
    (child,) = [child for child in children() if child not in before]
    del checker
    gc.collect()
    assert not child.is_running()


def test_a_tokenizer_without_bytes_is_told() -> None:
    words_only = make_tokenizer(20).backend_tokenizer.to_str()
    checker = GrammarChecker(CheckedVocabulary(words_only, (2,)))
    with pytest.raises(CheckerError, match="decoder"):
        checker.check(FINE)


def test_without_an_end_token_of_its_own_a_tokenizer_can_be_used() -> None:
    checker = GrammarChecker(CheckedVocabulary(VOCABULARY.serialised, ()))
    assert checker.check(FINE) == ""
    checker.close()


def test_the_same_grammar_gets_the_same_answer_without_a_process(checker: GrammarChecker) -> None:
    grammar = regex("[0-9]{3}")
    assert checker.check(grammar) == grammar_checker.complaint(grammar, READER) == ""
