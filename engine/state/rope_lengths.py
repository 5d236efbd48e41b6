"""RoPE lengths: for models whose rotary embedding depends on the length of a sequence.

As in transformers' `generate`, the tokens of a prompt get the frequencies of the length of the
prompt, and each later token those of its own position. This does not depend on chunks or on
preemption. Some families also recompute a whole sequence once, when it outgrows a length.
"""

from array import array
from collections.abc import Iterable

from engine.state.sequence import Sequence
from wire.messages import RopeRule


def rope_lens(sequences: Iterable[Sequence], rule: RopeRule) -> bytes:
    """The RoPE length of each row, see `Step`."""
    limit = rule.recompute_len
    return array("i", [_rope_len(sequence, limit) for sequence in sequences]).tobytes()


def rope_length(sequence: Sequence, rule: RopeRule) -> int:
    """What the KV of the sequence's tokens depends on besides their positions.

    0 while the frequencies of the prompt's tokens are those of any short sequence.
    """
    length = _rope_len(sequence, rule.recompute_len)
    return 0 if length <= rule.unscaled_len else length


def outgrowing(sequences: Iterable[Sequence], rule: RopeRule | None) -> list[Sequence]:
    """The sequences that must be recomputed because of the token that they have just got."""
    if rule is None or not rule.recompute_len:
        return []
    limit = rule.recompute_len
    return [s for s in sequences if len(s.token_ids) == limit + 1 and _has_outgrown(s, limit)]


def _rope_len(sequence: Sequence, limit: int) -> int:
    return limit + 1 if _has_outgrown(sequence, limit) else sequence.num_prompt_tokens


def _has_outgrown(sequence: Sequence, limit: int) -> bool:
    """Whether it was within the limit (0: there is none) as a prompt, and is beyond it now."""
    return sequence.num_prompt_tokens <= limit < len(sequence.token_ids)
