"""Token pieces: single tokens as text and as bytes.

A token is decoded after another one, because decoding it by itself would lose the leading space
that tokens of many tokenizers have.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

_CACHED = 65536
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class TokenPieces:
    """Text and bytes of single tokens, with a cache."""

    def __init__(self, tokenizer: Any, decode: Callable[[list[int]], str]) -> None:
        self._tokenizer = tokenizer
        self._decode = decode
        self._bytes_of_letters = _byte_letters()
        # A token that is a complete word. Other tokens are decoded after it, not at the start of a
        # text.
        self._before = self._find_word()
        self._before_text = decode([self._before])
        self.text = lru_cache(_CACHED)(self._text)
        self.bytes = lru_cache(_CACHED)(self._bytes)

    def name(self, token_id: int) -> str:
        """The token's text; if it is a part of a character, its bytes in OpenAI's notation."""
        text = self.text(token_id)
        if "\ufffd" not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes(token_id))

    def text_at_begin(self, token_id: int) -> str:
        """The token as text at the beginning of a text, where some tokenizers drop its space."""
        return self._decode([token_id]) or self.text(token_id)

    def _text(self, token_id: int) -> str:
        """The token as text; a part of a character becomes U+FFFD."""
        both = self._decode([self._before, token_id])
        if both.startswith(self._before_text):
            return both[len(self._before_text) :]
        return self._decode([token_id])

    def _bytes(self, token_id: int) -> list[int]:
        """The token's bytes in UTF-8, including those of a part of a character."""
        text = self._text(token_id)
        if "\ufffd" not in text:
            return list(text.encode())
        token = str(self._tokenizer.convert_ids_to_tokens(token_id))
        fallback = _BYTE_TOKEN.fullmatch(token)
        if fallback:
            return [int(fallback[1], 16)]
        if all(letter in self._bytes_of_letters for letter in token):
            return [self._bytes_of_letters[letter] for letter in token]
        return list(text.encode())

    def _find_word(self) -> int:
        special = set(self._tokenizer.all_special_ids)
        for token_id in self._tokenizer("a word", add_special_tokens=False)["input_ids"]:
            if token_id not in special and self._decode([token_id]).strip().isalpha():
                return int(token_id)
        return next(id_ for id_ in range(len(self._tokenizer)) if id_ not in special)


def _byte_letters() -> dict[str, int]:
    """The letters of byte-level tokenizers: printable Latin-1 as itself, the rest from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {chr(byte): byte for byte in printable}
    rest = (byte for byte in range(256) if byte not in letters.values())
    return letters | {chr(0x100 + i): byte for i, byte in enumerate(rest)}
