"""The checker's process: its verdicts, and that no grammar blocks it for good."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.grammar import grammar_checker
from server.grammar.grammar_checker import (
    CheckedVocabulary,
    CheckerError,
    CheckLimits,
    GrammarChecker,
    UncheckedError,
)
from server.grammar.grammar_text import choice, ebnf, json_schema, lark, regex
from tests.checkpoints import make_tokenizer
from tests.server.grammar.grammar_readers import READER, accepts
from tests.server.world import TOKENIZER

VOCABULARY = CheckedVocabulary(TOKENIZER.serialised or "", TOKENIZER.eos_token_ids[0])
FINE = regex("[a-z]+")
SLOW = regex("a{1000000}")  # some 0.5 s and 130 MB
# Texts of 16 KiB that take seconds, or a second, to convert to Lark.
BLANK = ebnf("\n" * 16_376 + "root::=.")
CHAIN = ebnf("root::=a0\n" + "".join(f"a{i}::=a{i + 1}\n" for i in range(1246)) + 'a1246::="x"')
# More than any of these checks takes on any machine.
GENEROUS: dict[str, Any] = {
    "max_mask_s": 600.0,
    "max_total_s": 600.0,
    "max_cpu_s": 600,
    "patience_s": 600.0,
}


@pytest.fixture(scope="module")
def checker() -> Iterator[GrammarChecker]:
    made = GrammarChecker(VOCABULARY, CheckLimits(**GENEROUS))
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
        regex("(a+)+b"),
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
def test_valid_grammars_have_no_complaint(grammar: str, checker: GrammarChecker) -> None:
    assert checker.check(grammar).complaint == ""


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        (regex("(a"), "unclosed group"),
        (regex(r"(a)\1"), "backreferences are not supported"),
        (regex("(?=a)b"), "look-around"),
        (regex(r"[^\s\S]"), "matches nothing"),
        (regex(""), "matches nothing but the empty text"),
        (choice([""]), "matches nothing but the empty text"),
        (SLOW, "too many expressions"),
        (regex("((a{1,100}){1,100}){1,100}"), "too many expressions"),
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
        (ebnf("root ::= other"), "has an EBNF grammar that cannot be read: Rule 'other' not found"),
        (ebnf("root ::= " + "(" * 5000), "has an EBNF grammar that cannot be read: it is nested"),
        (ebnf(f"root ::= {'a' * 16_000}"), "has an EBNF grammar that cannot be read: Rule 'aaa"),
        (CHAIN, "memory or nesting limit"),
        ("no grammar", "cannot be used"),
        ("", "cannot be used"),
    ],
    ids=lambda value: value[14:54],
)
def test_the_complaint_about_an_invalid_grammar_is_one_line(
    grammar: str, words: str, checker: GrammarChecker
) -> None:
    complaint = checker.check(grammar).complaint
    assert words in complaint
    assert 0 < len(complaint) < 400
    assert "\n" not in complaint


def test_ebnf_is_returned_as_lark(checker: GrammarChecker) -> None:
    verdict = checker.check(ebnf('root ::= "a" root | "b"'))
    assert verdict.complaint == ""
    assert accepts(verdict.lark, "aab")
    assert checker.check(FINE).lark == ""


MASKS = "is too expensive: its token masks exceed the time limit; simplify it"
CPU = "takes more than 0 CPU seconds to check; simplify it"
MEMORY = "exceeds the checker's memory or nesting limit; simplify it"


@pytest.mark.parametrize(
    ("limits", "grammar", "words"),
    [
        ({"max_mask_s": 0.0}, FINE, MASKS),
        ({"max_total_s": 0.0}, FINE, MASKS),
        ({"max_cpu_s": 0, "num_tokens": 10**9}, FINE, CPU),
        ({"max_cpu_s": 0}, BLANK, CPU),
        ({"max_memory_bytes": 1}, SLOW, MEMORY),
    ],
    ids=["mask", "total", "CPU", "CPU to read it", "memory"],
)
def test_a_grammar_above_a_limit_is_refused_and_the_next_is_checked(
    limits: dict[str, Any], grammar: str, words: str
) -> None:
    checker = GrammarChecker(VOCABULARY, CheckLimits(**GENEROUS | limits))
    assert checker.check(grammar).complaint == words
    assert checker.check("no grammar").complaint.startswith("cannot be used")
    checker.close()


def test_a_check_that_times_out_is_lost_and_the_next_succeeds() -> None:
    checker = GrammarChecker(VOCABULARY, CheckLimits(**GENEROUS | {"patience_s": 0.0}))
    with pytest.raises(UncheckedError):
        checker.check(SLOW)
    checker._limits = CheckLimits(**GENEROUS)
    assert checker.check(FINE).complaint == ""
    checker.close()


def test_a_check_is_lost_when_its_process_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checker = GrammarChecker(VOCABULARY, CheckLimits(**GENEROUS, num_tokens=10**9))
    assert checker.check("no grammar").complaint
    assert checker._child is not None
    connection = checker._child.connection
    send = connection.send_bytes

    def send_and_end(data: bytes) -> None:
        send(data)
        checker.close()

    monkeypatch.setattr(connection, "send_bytes", send_and_end)
    with pytest.raises(UncheckedError):
        checker.check(FINE)
    assert checker.check("no grammar").complaint
    checker.close()


def test_a_process_that_does_not_start_is_unchecked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checker = GrammarChecker(VOCABULARY)
    with monkeypatch.context() as patch:
        patch.setattr(grammar_checker, "START_TIMEOUT_S", 0.0)
        with pytest.raises(UncheckedError):
            checker.check(FINE)
    assert checker.check(FINE).complaint == ""
    checker.close()


def test_modules_in_the_working_directory_are_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "server.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    checker = GrammarChecker(VOCABULARY)
    assert checker.check(FINE).complaint == ""
    checker.close()


def children() -> list[psutil.Process]:
    """The checkers' processes."""
    return [
        child
        for child in psutil.Process().children()
        if "server.grammar.grammar_checker" in child.cmdline()
    ]


def test_a_dead_process_is_replaced() -> None:
    before = children()
    checker = GrammarChecker(VOCABULARY)
    assert checker.check(FINE).complaint == ""
    (child,) = [child for child in children() if child not in before]
    child.kill()
    psutil.wait_procs([child])
    assert checker.check(FINE).complaint == ""
    checker.close()


def test_no_process_outlives_its_checker() -> None:
    before = children()
    checker = GrammarChecker(VOCABULARY)
    assert checker.check(FINE).complaint == ""
    (child,) = [child for child in children() if child not in before]
    del checker
    gc.collect()
    assert not child.is_running()


def test_a_tokenizer_without_bytes_is_an_error() -> None:
    words_only = make_tokenizer(20).backend_tokenizer.to_str()
    for serialised, words in [(words_only, "decoder"), ("", "fast tokenizer")]:
        checker = GrammarChecker(CheckedVocabulary(serialised, 2))
        with pytest.raises(CheckerError, match=words):
            checker.check(FINE)


def test_without_an_end_token_of_its_own_a_tokenizer_can_be_used() -> None:
    checker = GrammarChecker(CheckedVocabulary(VOCABULARY.serialised, None))
    assert checker.check(FINE).complaint == ""
    checker.close()


def test_the_same_grammar_gets_the_same_answer_without_a_process(checker: GrammarChecker) -> None:
    grammar = regex("[0-9]{3}")
    complaint = grammar_checker.complaint(grammar, READER, 2**31, CheckLimits(**GENEROUS))
    assert checker.check(grammar).complaint == complaint == ""
