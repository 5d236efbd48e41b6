"""A guide: the state of one sequence in its grammar, and the masks of the next tokens.

A mask is uint32 [words] with a bit for each token that may follow. If the output is complete, the
stop tokens of the sequence are allowed. If the grammar fails, only the stop tokens are allowed, so
that the sequence stops.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from configs.schema.grammar_limits import grammar_limits
from workers.sampling.vocabulary import Vocabulary

log = logging.getLogger("tdpipe")


@dataclass(slots=True, eq=False)
class Guide:
    """Follows the output of one sequence.

    `matcher` is None before the first mask, and again after the output is complete or the matcher
    has failed. A complete sequence without `stop_token_ids`, as with `ignore_eos`, continues with
    the end token of the vocabulary, or if the model has no row for it, with any token.
    """

    stop_token_ids: tuple[int, ...]
    matcher: LLMatcher | None = None

    def fail(self, reason: str) -> None:
        """Stop following the grammar."""
        self.matcher = None
        log.error("a sequence stops, because its grammar failed: %s", reason.partition("\n")[0])

    def as_read(self, token_id: int, vocabulary: Vocabulary) -> int:
        """Convert a token for the matcher: a token that ends the sequence becomes the end token."""
        assert self.matcher is not None
        ends = token_id in self.stop_token_ids and self.matcher.is_accepting()
        return vocabulary.eos_token_id if ends else token_id


def compile_grammar(grammar: str, vocabulary: Vocabulary) -> LLMatcher:
    """Make a matcher that has read no token, to be copied for each sequence (about 10 us)."""
    return LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=grammar_limits())


def first_mask(
    guide: Guide, compiled: LLMatcher, output: Sequence[int], vocabulary: Vocabulary
) -> np.ndarray:
    """Start the guide of a sequence that already has `output`; returns its mask [1, words]."""
    guide.matcher = compiled.deep_copy()
    for token_id in output:
        guide.matcher.consume_token(guide.as_read(token_id, vocabulary))
    return _masks([guide], vocabulary, None)


def next_masks(
    guides: Sequence[Guide],
    token_ids: Sequence[int],
    vocabulary: Vocabulary,
    executor: LLExecutor,
) -> np.ndarray:
    """Read one token per guide; returns the masks of the next tokens [guides, words]."""
    read = [
        (guide.matcher, guide.as_read(token_id, vocabulary))
        for guide, token_id in zip(guides, token_ids, strict=True)
        if guide.matcher is not None
    ]
    if read:
        executor.consume_token_par(read)
    return _masks(guides, vocabulary, executor)


def only_stops(guide: Guide, num_words: int) -> np.ndarray:
    """The mask [words] that allows only stop tokens, or all tokens if there are none."""
    if not guide.stop_token_ids:
        return np.full(num_words, 0xFFFFFFFF, np.uint32)
    mask = np.zeros(num_words, np.uint32)
    _allow(mask, guide.stop_token_ids)
    return mask


def _masks(
    guides: Sequence[Guide], vocabulary: Vocabulary, executor: LLExecutor | None
) -> np.ndarray:
    filled = np.zeros((len(guides), -(-vocabulary.tokenizer.vocab_size // 32)), np.int32)
    live = [(guide.matcher, row) for row, guide in enumerate(guides) if guide.matcher is not None]
    if executor is not None and len(live) > 1:
        fill_next_token_bitmask_par(executor, live, filled)
    else:
        for matcher, row in live:
            fill_next_token_bitmask(matcher, filled, row)
    allowed = filled.view(np.uint32)
    masks: np.ndarray = allowed[:, : len(vocabulary.known)] & vocabulary.known
    word, bit = divmod(vocabulary.eos_token_id, 32)
    # The end token may be beyond the masks: tokenizers can have more ids than the model.
    is_complete = (allowed[:, word] >> bit) & 1
    for row, guide in enumerate(guides):
        # A failed matcher also reports that it is complete, and allows only the end token.
        if guide.matcher is not None:
            if guide.matcher.is_error():
                guide.fail(guide.matcher.get_error())
            elif guide.matcher.is_stopped():
                guide.matcher = None  # complete: free it, the guide may be kept for long
            elif not masks[row].any() and not is_complete[row]:
                guide.fail("the vocabulary has no token for what must follow")
        if guide.matcher is None or is_complete[row]:
            _end(masks[row], guide, vocabulary)
    return masks


def _end(mask: np.ndarray, guide: Guide, vocabulary: Vocabulary) -> None:
    """Allow the sequence to end here, where its grammar allows the end token."""
    end = vocabulary.eos_token_id
    is_known = bool(vocabulary.known[end // 32] >> end % 32 & 1) if end // 32 < len(mask) else False
    if is_known:
        mask[end // 32] &= ~np.uint32(1 << end % 32)
    _allow(mask, guide.stop_token_ids or ((end,) if is_known else ()))
    if not mask.any():
        mask[:] = vocabulary.known


def _allow(mask: np.ndarray, token_ids: Sequence[int]) -> None:
    for token_id in token_ids:
        mask[token_id // 32] |= np.uint32(1 << token_id % 32)
