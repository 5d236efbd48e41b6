"""A guide: one sequence's state in its grammar, and the masks of the tokens that may come next.

A mask is uint32 [words] with a bit for each token that may follow. Where the output is complete,
the sequence's stop tokens mark its end; where something fails, only they are allowed: the sequence
stops.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import fill_next_token_bitmask, fill_next_token_bitmask_par

from configs.grammar_limits import grammar_limits
from workers.sampling.vocabulary import Vocabulary

log = logging.getLogger("tdpipe")


@dataclass(slots=True, eq=False)
class Guide:
    """Reads one sequence's output.

    `matcher` is None before it has begun, and again once the output is complete or it has failed.
    Without `stop_token_ids` of its own, as with `ignore_eos`, a sequence that is complete continues
    with the vocabulary's end token.
    """

    stop_token_ids: tuple[int, ...]
    matcher: LLMatcher | None = None

    def fail(self, reason: str) -> None:
        """Stop following the grammar."""
        self.matcher = None
        log.error("a sequence stops, because its grammar failed: %s", reason.partition("\n")[0])

    def as_read(self, token_id: int, vocabulary: Vocabulary) -> int:
        """The token as the matcher reads it: each one that ends the sequence is the end token."""
        assert self.matcher is not None
        ends = token_id in self.stop_token_ids and self.matcher.is_accepting()
        return vocabulary.eos_token_id if ends else token_id


def compile_grammar(grammar: str, vocabulary: Vocabulary) -> LLMatcher:
    """A matcher that has read nothing, to be copied for each sequence (about 10 us)."""
    return LLMatcher(vocabulary.tokenizer, grammar, log_level=0, limits=grammar_limits())


def first_mask(
    guide: Guide, compiled: LLMatcher, output: Sequence[int], vocabulary: Vocabulary
) -> np.ndarray:
    """Start a guide for a sequence that has `output` already; its first mask. [1, words]"""
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
    """Read one token each; the masks of what may follow. [guides, words]"""
    read = [
        (guide.matcher, guide.as_read(token_id, vocabulary))
        for guide, token_id in zip(guides, token_ids, strict=True)
        if guide.matcher is not None
    ]
    if read:
        executor.consume_token_par(read)
    return _masks(guides, vocabulary, executor)


def only_stops(guide: Guide, num_words: int) -> np.ndarray:
    """The mask that only lets a sequence stop, or anything if it cannot stop. [words]"""
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
    masks: np.ndarray = filled.view(np.uint32)[:, : len(vocabulary.known)] & vocabulary.known
    word, bit = divmod(vocabulary.eos_token_id, 32)
    is_complete = (masks[:, word] >> bit) & 1
    for row, guide in enumerate(guides):
        # A failed matcher reports that it is complete, and allows nothing but the end.
        if guide.matcher is not None:
            if guide.matcher.is_error():
                guide.fail(guide.matcher.get_error())
            elif guide.matcher.is_stopped():
                guide.matcher = None  # complete: the sampler slot may keep the guide for long
            elif not masks[row].any():
                guide.fail("the vocabulary has no token for what must follow")
        if guide.matcher is None or is_complete[row]:
            masks[row, word] &= ~np.uint32(1 << bit)
            _allow(masks[row], guide.stop_token_ids or (vocabulary.eos_token_id,))
    return masks


def _allow(mask: np.ndarray, token_ids: Sequence[int]) -> None:
    for token_id in token_ids:
        mask[token_id // 32] |= np.uint32(1 << token_id % 32)
