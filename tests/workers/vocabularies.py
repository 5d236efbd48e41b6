"""Vocabularies for grammars: three kinds of tokenizers, and the bytes of their tokens."""

import json
from functools import cache

import numpy as np
from tokenizers import Tokenizer as Core
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from configs.schema.model import DEMO_MODEL
from tests.server.world import byte_fallback_core, byte_level_tokenizer
from workers.sampling.vocabulary import Vocabulary, make

# Beyond each tokenizer's own ids, as models' heads often are; not a multiple of 32.
SPARE_IDS = 45
KINDS = ("demo", "byte-level", "byte-fallback")


@cache
def core_of(kind: str) -> Core:
    """The tokenizer in the tokenizers library."""
    if kind == "byte-fallback":
        return byte_fallback_core()
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL) if kind == "demo" else None
    core: Core = (tokenizer or byte_level_tokenizer()).backend_tokenizer
    return core


@cache
def vocabulary_of(kind: str) -> Vocabulary:
    """As on the last stage, with a head that is wider than the tokenizer."""
    core = core_of(kind)
    ids = core.get_vocab(with_added_tokens=True).values()
    return make(core.to_str(), ids, max(ids) + 1 + SPARE_IDS, end_of(kind))


def end_of(kind: str) -> int:
    """The token that ends a text."""
    return 262 if kind == "byte-fallback" else 0


@cache
def bytes_of(kind: str) -> dict[int, bytes]:
    """The bytes of each token, found without llguidance; special tokens are left out."""
    core = core_of(kind)
    special = {t["id"] for t in json.loads(core.to_str())["added_tokens"] if t["special"]}
    vocabulary = {id_: text for text, id_ in core.get_vocab().items() if id_ not in special}
    if kind == "byte-fallback":
        return {
            id_: bytes([int(text[3:5], 16)])
            if text.startswith("<0x")
            else text.replace("▁", " ").encode()
            for id_, text in vocabulary.items()
        }
    # GPT-2's table: printable Latin-1 characters stand for themselves, the others come in order.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {char: ord(char) for char in alphabet if ord(char) < 256}
    rest = sorted(set(range(256)).difference(own.values()))
    table = own | dict(zip([c for c in alphabet if ord(c) >= 256], rest, strict=True))
    return {id_: bytes(table[char] for char in text) for id_, text in vocabulary.items()}


def ids_in(mask: np.ndarray) -> set[int]:
    """The tokens that a mask allows."""
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())
