"""The prompt's end: what a detokenizer must know of the tokens before an output.

Decoders treat the first token of a text differently (sentencepiece drops its leading space), and an
output may complete a character that the prompt began. So it is decoded after the prompt's last
tokens.
"""

import codecs
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from itertools import islice

HALF_CHARACTER = "\ufffd"
# A single token may have no text at the beginning of a text, such as a lone space.
MIN_CONTEXT = 4
# Bounds on the work for one prompt. In a longer run of byte tokens, only the last ones decide
# whether it is valid; after more ids without any text, the output is the beginning of a text.
MAX_CONTEXT = 256
MAX_HELD = 1024
_MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class PromptEnd:
    """The last tokens of a prompt.

    `context` are tokens with a text that later tokens cannot change. `held` are the tokens after
    them, a run of byte tokens or an unfinished character. Their text is `held_text`, unless the
    output changes it: then the first `num_known` characters, those before an unfinished character,
    are still the prompt's.
    """

    context: tuple[int, ...] = ()
    held: tuple[int, ...] = ()
    held_text: str = ""
    num_known: int = 0

    def without_held(self, text: str) -> str:
        """Return the output's part of the text of `held` and the first tokens of the output."""
        is_unchanged = text.startswith(self.held_text)
        return text[len(self.held_text) if is_unchanged else self.num_known :]


NO_PROMPT = PromptEnd()


def prompt_end(
    prompt: Sequence[int],
    decode: Callable[[Sequence[int]], str],
    bytes_of: Callable[[int], Sequence[int]],
    *,
    omitted_ids: Set[int] = frozenset(),
    sticky_ids: Set[int] = frozenset(),
) -> PromptEnd:
    """Find the end of a prompt.

    `decode` omits the tokens in `omitted_ids`; `bytes_of` returns the bytes of a token's text.
    `sticky_ids` are tokens that must be decoded together with their successor, see
    `FastDetokenizer`.
    """
    visible = (token_id for token_id in reversed(prompt) if token_id not in omitted_ids)
    last = list(islice(visible, MAX_HELD + MAX_CONTEXT))[::-1]
    num_unfinished = _num_unfinished(last[-_MAX_CHARACTER_BYTES:], bytes_of)
    split = len(last) - num_unfinished

    def may_change() -> bool:
        # A character that is really U+FFFD looks like an unfinished one to a detokenizer.
        context = last[max(0, split - MIN_CONTEXT) : split]
        return context[-1] in sticky_ids or decode(context).endswith(HALF_CHARACTER)

    while max(0, len(last) - MAX_HELD) < split and may_change():
        split -= 1
    if split and may_change():
        while split < len(last) and _continues_character(bytes_of(last[split])):
            split += 1
        last, split = last[split:], 0
    size = MIN_CONTEXT
    while not (text := decode(last[max(0, split - size) : split])):
        if size >= min(split, MAX_CONTEXT):
            break
        size *= 2
    begin = max(0, split - size)
    held_text = decode(last[begin:])[len(text) :]
    num_known = len(decode(last[begin : len(last) - num_unfinished])) - len(text)
    return PromptEnd(tuple(last[begin:split]), tuple(last[split:]), held_text, max(0, num_known))


def _continues_character(utf8: Sequence[int]) -> bool:
    return bool(utf8) and utf8[0] & 0xC0 == 0x80


def _num_unfinished(last: Sequence[int], bytes_of: Callable[[int], Sequence[int]]) -> int:
    """Return the number of tokens at the end that begin or continue an unfinished character."""
    parts = [bytes(bytes_of(token_id)) for token_id in last]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(b"".join(parts))
    pending, _ = decoder.getstate()
    num_bytes, num_tokens = 0, 0
    while num_bytes < len(pending):
        num_tokens += 1
        num_bytes += len(parts[-num_tokens])
    return num_tokens
