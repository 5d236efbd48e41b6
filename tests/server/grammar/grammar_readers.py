"""Matching texts against a grammar, as the last stage does."""

import random

import msgspec
import numpy as np
from llguidance import LLMatcher

from configs.schema.grammar_limits import grammar_limits
from tests.server.world import byte_level_tokenizer
from wire.grammar_vocabulary import grammar_tokenizer

END_ID, SPECIAL, SPECIAL_ID = 0, "<|begin|>", 1
READER = grammar_tokenizer(byte_level_tokenizer().backend_tokenizer.to_str(), eos_token_id=END_ID)


def accepts(grammar: str, *parts: str | int) -> bool:
    """Whether the grammar accepts the sequence of these texts and special tokens as a whole."""
    matcher = LLMatcher(READER, grammar, log_level=0, limits=grammar_limits())
    assert not matcher.is_error(), matcher.get_error()
    token_ids: list[int] = []
    for part in parts:
        token_ids += [part] if isinstance(part, int) else READER.tokenize_str(part)
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def walk(grammar: str, seed: int) -> str:
    """A text that the grammar accepts, of random tokens; it ends as soon as it may."""
    matcher = LLMatcher(READER, grammar, log_level=0, limits=grammar_limits())
    rng, token_ids = random.Random(seed), list[int]()
    while not matcher.is_accepting() or rng.random() < 0.5:
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = [int(id_) for id_ in np.flatnonzero(bits) if id_ != END_ID]
        if not allowed:
            break
        assert len(token_ids) < 2000, "the text does not end"
        token_ids.append(rng.choice(allowed))
        assert matcher.consume_token(token_ids[-1])
    return str(byte_level_tokenizer().decode(token_ids))


def rules_of(grammar: str) -> str:
    """The Lark in a serialised grammar."""
    text: str = msgspec.json.decode(grammar)["grammars"][0]["lark_grammar"]
    return text
