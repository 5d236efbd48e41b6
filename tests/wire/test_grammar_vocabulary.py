"""Added tokens in grammars: those that are text can be sampled as text, special ones cannot."""

import threading
from typing import Any

import numpy as np
import pytest
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask_par
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from wire.grammar_vocabulary import grammar_tokenizer, named_token_ids

TEXTS = ["<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL] x", "plain"]
CORPUS = ["the quick brown fox", *(f"a{text}\nb {text}" for text in TEXTS)] * 8


def _with_added_tokens(core: Tokenizer) -> Tokenizer:
    core.add_special_tokens([AddedToken(t, special=True) for t in ("<|end|>", "<|im_start|>")])
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in TEXTS])
    return core


def byte_level() -> Tokenizer:
    """As Qwen."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=340, initial_alphabet=alphabet, show_progress=False)
    )
    return _with_added_tokens(core)


def byte_fallback(step: Any) -> Tokenizer:
    """As Llama 2 in its two forms, which put a space before a text."""
    parts = ["▁", "▁the", "x", "</", "<", "th", "ink", "tool", "_call", "pl", "ain", "[", "TOOL"]
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *parts]
    words += sorted(set("".join(parts)).difference(words))
    words += ["to", "ol", "_c", "al", "_cal", "in", "ai", "TO", "OL"]
    pairs = ["< /", "t h", "i n", "in k", "t o", "o l", "to ol", "_ c", "a l", "_c al", "_cal l"]
    pairs += ["p l", "a i", "ai n", "T O", "O L", "TO OL"]
    merges = [tuple(pair.split()) for pair in pairs]
    core = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, byte_fallback=True))
    if isinstance(step, normalizers.Normalizer):
        core.normalizer = step
    else:
        core.pre_tokenizer = step
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return _with_added_tokens(core)


CORES = {
    "byte level": byte_level(),
    "prepended": byte_fallback(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
    "prepended alone": byte_fallback(normalizers.Prepend("▁")),
    "metaspace": byte_fallback(pre_tokenizers.Metaspace(prepend_scheme="always")),
    "NFKC": byte_fallback(normalizers.Sequence([normalizers.NFKC(), normalizers.Prepend("▁")])),
}
KINDS = {
    name: (core, grammar_tokenizer(core.to_str(), eos_token_id=core.token_to_id("<|end|>")))
    for name, core in CORES.items()
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def allowed(kind: str, matcher: LLMatcher) -> set[str]:
    assert not matcher.is_error(), matcher.get_error()
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return {KINDS[kind][0].id_to_token(int(id_)) for id_ in np.flatnonzero(bits)}


def follows(kind: str, grammar: str, *tokens: str) -> bool:
    """Whether a mask allows each of the tokens, and the grammar is then complete."""
    core, tokenizer = KINDS[kind]
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    for token in tokens:
        if token not in allowed(kind, matcher) or not matcher.consume_token(
            core.token_to_id(token)
        ):
            return False
    return bool(matcher.is_accepting())


@each_kind
@pytest.mark.parametrize("text", TEXTS)
def test_a_literal_allows_the_token_with_its_text(kind: str, text: str) -> None:
    literal = text.replace("[", r"\[").replace("]", r"\]")
    for grammar in (
        LLMatcher.grammar_from_regex(literal),
        LLMatcher.grammar_from_regex(f"({literal}|fox)"),
        LLMatcher.grammar_from_regex(f"(?s:.*){literal}"),
        LLMatcher.grammar_from_regex(literal[:-1] + "."),
        LLMatcher.grammar_from_lark(f'start: "{text}" | "x"'),
        LLMatcher.grammar_from_lark(f"start: <[{KINDS[kind][0].token_to_id(text)}]>"),
    ):
        assert follows(kind, grammar, text), grammar
    assert KINDS[kind][1].decode_bytes([KINDS[kind][0].token_to_id(text)]) == text.encode()


@each_kind
def test_the_text_may_also_be_spelled(kind: str) -> None:
    tokenizer = KINDS[kind][1]
    ids = tokenizer.tokenize_str("<tool_call")
    grammar = LLMatcher.grammar_from_regex("(<tool_call>|x)")
    assert LLMatcher(tokenizer, grammar).try_consume_tokens(ids) == len(ids)


def test_json_may_contain_the_token_in_a_string() -> None:
    grammar = LLMatcher.grammar_from_json_schema({"enum": ["<think>", "fox"]})
    assert follows("byte level", grammar, '"', "<think>", '"')
    grammar = LLMatcher.grammar_from_json_schema({"type": "string"})
    assert follows("byte level", grammar, '"', "<tool_call>", "</tool_call>", '"')


@each_kind
def test_a_special_token_is_no_text(kind: str) -> None:
    core, tokenizer = KINDS[kind]
    for pattern in (r"<\|im_start\|>", "(?s:.*)"):
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_regex(pattern), log_level=0)
        assert "<|im_start|>" not in allowed(kind, matcher)
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_regex(r"<\|im_start\|>"), log_level=0)
    taken = b""
    while not matcher.is_accepting():
        token = core.token_to_id(min(allowed(kind, matcher)))
        taken += tokenizer.decode_bytes([token])
        assert matcher.consume_token(token)
    assert taken == b"<|im_start|>"


@each_kind
def test_a_special_token_is_allowed_by_its_name_or_id(kind: str) -> None:
    id_ = KINDS[kind][0].token_to_id("<|im_start|>")
    for name in ("<|im_start|>", f"<[{id_}]>"):
        grammar = LLMatcher.grammar_from_lark(f'start: {name} "<think>" "x"')
        assert follows(kind, grammar, "<|im_start|>", "<think>", "x")


@each_kind
def test_no_space_comes_before_a_forced_text(kind: str) -> None:
    core, tokenizer = KINDS[kind]
    for text in ("the fox", " the", "é", "ﬁ", "\n<tool_call>\n"):
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(f"start: {_quoted(text)}"))
        taken = b""
        while not matcher.is_accepting():
            token = core.token_to_id(max(allowed(kind, matcher)))
            taken += tokenizer.decode_bytes([token])
            assert matcher.consume_token(token)
        assert taken.decode() == text


def _quoted(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'


def test_masks_are_made_in_several_threads() -> None:
    core, tokenizer = KINDS["byte level"]
    grammar = LLMatcher.grammar_from_regex("<tool_call>\n<think>(fox|the)</think>\n</tool_call>")
    tokens = ["<tool_call>", "Ċ", "<think>", "f", "o", "x", "</think>", "Ċ", "</tool_call>"]
    failures: list[Any] = []

    def follow() -> None:
        executor = LLExecutor(2)
        matchers = [(LLMatcher(tokenizer, grammar), row) for row in range(4)]
        masks = np.zeros((4, -(-tokenizer.vocab_size // 32)), np.int32)
        for token in tokens:
            fill_next_token_bitmask_par(executor, matchers, masks)
            id_ = core.token_to_id(token)
            bits = masks[:, id_ // 32] >> (id_ % 32) & 1
            if not bits.all():
                failures.append((token, bits))
            executor.consume_token_par([(matcher, id_) for matcher, _ in matchers])
        if not all(matcher.is_accepting() for matcher, _ in matchers):
            failures.append("end")

    threads = [threading.Thread(target=follow) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_the_names_of_added_tokens_are_those_that_are_not_special() -> None:
    core = CORES["byte level"]
    assert named_token_ids(core.to_str()) == {text: core.token_to_id(text) for text in TEXTS}
    assert named_token_ids("{}") == {}
