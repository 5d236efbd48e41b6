"""Added tokens that are not special, as Qwen 3's `<tool_call>` and `<think>`, in all grammars."""

from collections.abc import Iterator
from typing import Any

import pytest
from llguidance import LLMatcher
from tokenizers import AddedToken

from configs.schema.grammar_limits import grammar_limits
from server.chat.call_formats import HERMES
from server.grammar.grammar_checker import CheckedVocabulary, CheckLimits, GrammarChecker
from server.grammar.grammar_text import (
    after_reasoning,
    choice,
    either,
    json_schema,
    lark,
    regex,
    with_token_ids,
)
from tests.server.world import byte_level_tokenizer
from wire.grammar_vocabulary import grammar_tokenizer, named_token_ids

TEXTS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
WRAPPER: Any = byte_level_tokenizer()
WRAPPER.add_tokens([AddedToken(text, special=False, normalized=False) for text in TEXTS])
CORE = WRAPPER.backend_tokenizer
READER = grammar_tokenizer(CORE.to_str(), eos_token_id=0)
NAMED = named_token_ids(CORE.to_str())
CALL = '<tool_call>\n{"name": "get", "arguments": {"x": 1}}\n</tool_call>'
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


def accepts(grammar: str, text: str) -> bool:
    """Whether the text's own tokens, with the added ones, are accepted as a whole."""
    token_ids = CORE.encode(text).ids
    assert set(NAMED.values()) & set(token_ids)
    matcher = LLMatcher(READER, grammar, log_level=0, limits=grammar_limits())
    assert not matcher.is_error(), matcher.get_error()
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def calls(*, several: bool = False, whitespace: str | None = None) -> str:
    return HERMES.grammar([("get", SCHEMA)], {}, several=several, whitespace=whitespace)


@pytest.mark.parametrize(
    ("grammar", "text"),
    [
        (regex("<tool_call>[a-z]+</tool_call>"), "<tool_call>abc</tool_call>"),
        (regex("(?s:.*)"), "a<think>b"),
        (choice(["<think>", "<tool_call>", "x"]), "<tool_call>"),
        (json_schema({"const": {"tag": "<think>"}}), '{"tag": "<think>"}'),
        (json_schema({"type": "string"}), '"<tool_call>"'),
        (calls(), CALL),
        (calls(several=True), f"{CALL}\n{CALL}"),
        (either(json_schema(SCHEMA), calls(whitespace=" ?")), CALL),
        (after_reasoning(json_schema(SCHEMA), "<think>", "</think>"), 'why</think>\n{"x": 1}'),
        (after_reasoning(calls(), "<think>", "</think>"), f"why</think>\n\n{CALL}"),
    ],
)
def test_the_token_is_accepted_as_its_text(grammar: str, text: str) -> None:
    assert accepts(grammar, text)


def test_names_of_tokens_in_lark_become_ids() -> None:
    source = 'start: <tool_call> "<tool_call>" /<tool_call>/ <other> "\\"" <think> # <think>\n'
    tool_call, think = NAMED["<tool_call>"], NAMED["<think>"]
    changed = source.replace("start: <tool_call>", f"start: <[{tool_call}]>")
    changed = changed.replace("<think> #", f"<[{think}]> #")
    assert with_token_ids(lark(source), NAMED) == lark(changed)
    assert with_token_ids(lark("start: <|end|>"), NAMED) == lark("start: <|end|>")
    assert with_token_ids(json_schema({"const": "<think>"}), NAMED) == json_schema(
        {"const": "<think>"}
    )


@pytest.fixture(scope="module")
def checker() -> Iterator[GrammarChecker]:
    limits = CheckLimits(max_mask_s=60, max_total_s=60, max_cpu_s=60, patience_s=60)
    made = GrammarChecker(CheckedVocabulary(CORE.to_str(), 0), limits)
    yield made
    made.close()


def test_the_checker_returns_the_grammar_with_ids(checker: GrammarChecker) -> None:
    verdict = checker.check(lark("start: <tool_call> /[a-z]+/ </tool_call>"))
    assert not verdict.complaint
    assert accepts(verdict.lark, "<tool_call>abc</tool_call>")
    assert not accepts(verdict.lark, "<think>abc</tool_call>")


@pytest.mark.parametrize(
    "grammar",
    [
        regex("<tool_call>\n[a-z]+"),
        regex(r"<\|end\|>x|<\|begin\|>"),
        choice(["<think>", "<|begin|>"]),
        calls(several=True),
        after_reasoning(calls(), "<think>", "</think>"),
        lark("start: <|begin|> <[1]>"),
    ],
)
def test_the_checker_walks_through_such_grammars(grammar: str, checker: GrammarChecker) -> None:
    assert checker.check(grammar).complaint == ""


def test_an_unknown_name_is_refused(checker: GrammarChecker) -> None:
    assert "unknown special token" in checker.check(lark("start: <no_such>")).complaint
