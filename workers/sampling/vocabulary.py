"""The vocabulary: the bytes of each token id, which grammars need."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from llguidance import LLTokenizer
from transformers import AutoTokenizer

from configs.schema.model import ModelConfig
from wire.grammar_vocabulary import grammar_tokenizer


class VocabularyError(Exception):
    """The tokenizer is missing, or does not support grammars; the message is one line."""


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """A tokenizer in the form that matchers need, and the ids that are tokens.

    `known` uint32 [words] has a bit for each id of the logits, because the head of a model is often
    wider than its tokenizer. `eos_token_id` marks the end in the masks of matchers.
    """

    tokenizer: LLTokenizer
    known: np.ndarray
    eos_token_id: int


def load(config: ModelConfig, vocab_size: int) -> Vocabulary:
    """Load the vocabulary for logits of width `vocab_size`; raises `VocabularyError`.

    This takes seconds for 150,000 tokens, and holds the GIL for half of this time.
    """
    name = config.tokenizer or config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    # A damaged file can raise anything, from KeyError to a bare Exception out of Rust.
    except Exception as error:
        raise VocabularyError(f"cannot load the tokenizer of {name}: {error}") from error
    if not tokenizer.is_fast:
        raise VocabularyError(f"the tokenizer of {name} is not one of the tokenizers library's")
    core = tokenizer.backend_tokenizer
    ids = core.get_vocab(with_added_tokens=True).values()
    return make(core.to_str(), ids, vocab_size, tokenizer.eos_token_id)


def make(
    serialised: str, token_ids: Collection[int], vocab_size: int, eos_token_id: int | None
) -> Vocabulary:
    """Make the vocabulary of a serialised tokenizer (JSON of the tokenizers library).

    `token_ids` are the ids that the tokenizer has. Raises `ValueError` if tokens are not bytes;
    llguidance may also panic, which is not an `Exception`.
    """
    num_ids = max(vocab_size, 1 + max(token_ids))
    tokenizer = grammar_tokenizer(serialised, num_ids, eos_token_id)
    is_known = np.zeros(-(-vocab_size // 32) * 32, bool)
    is_known[[id_ for id_ in token_ids if id_ < vocab_size]] = True
    known = np.packbits(is_known, bitorder="little").view(np.uint32)
    return Vocabulary(tokenizer, known, tokenizer.eos_token)


def no_vocabulary() -> Vocabulary:
    """Replace `load` if there is no tokenizer: always raise `VocabularyError`."""
    raise VocabularyError("there is no tokenizer here")
