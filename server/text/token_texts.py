"""Token texts: the part of the text that each token of a sequence is, and where it begins.

The offset of a token is the position, in characters, of the character that contains its first byte:
all tokens of one character have the same offset. Where byte tokens are not valid UTF-8, offsets
within their run are counted as if each invalid part was one U+FFFD.
"""

import codecs
from collections.abc import Set
from typing import NamedTuple

from server.text.detokenizer import Detokenizer
from server.text.prompt_end import HALF_CHARACTER
from server.text.token_pieces import TokenPieces


class PlacedToken(NamedTuple):
    """A token in its text: `text` is None if it is a part of a character or has no text here.

    `begins_text` is set for the first token with a text, if there is no text before the sequence.
    """

    text: str | None
    offset: int
    begins_text: bool


class TokenTexts:
    """Follows one sequence. `omitted_ids` are left out of its text, `sticky_ids` may be held back.

    `begins_text` says that no other text is before the sequence.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        pieces: TokenPieces,
        omitted_ids: Set[int],
        sticky_ids: Set[int],
        *,
        begins_text: bool,
    ) -> None:
        self.num_characters = 0
        self._detokenizer, self._pieces = detokenizer, pieces
        self._omitted_ids, self._sticky_ids = omitted_ids, sticky_ids
        self._begins_text = begins_text
        self._forget_held()

    def push(self, token_id: int) -> PlacedToken:
        """Place the next token."""
        text = self._detokenizer.push(token_id)
        is_omitted = token_id in self._omitted_ids
        utf8 = b"" if is_omitted else bytes(self._pieces.bytes(token_id))
        is_partial = HALF_CHARACTER in self._pieces.text(token_id)
        is_alone = self._num_held == 0
        offset = self.num_characters + self._position(utf8)
        placed = PlacedToken(
            text if text and is_alone and not is_partial else None,
            self.num_characters if is_alone else offset,
            self._begins_text and not is_omitted,
        )
        self._begins_text = self._begins_text and is_omitted
        self.num_characters += len(text)
        if text or not (is_partial or self._is_within_character or token_id in self._sticky_ids):
            self._forget_held()
        return placed

    def flush(self) -> None:
        """Count the text that is left after the last token."""
        self.num_characters += len(self._detokenizer.flush())

    def _forget_held(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_held = 0  # bytes of tokens with a text that is not shown yet
        self._num_characters_held = 0

    def _position(self, utf8: bytes) -> int:
        """Add bytes to those that are held; return the position of their first character."""
        self._num_held += len(utf8)
        self._num_characters_held += len(self._utf8.decode(utf8[:1]))
        position = self._num_characters_held
        if utf8 and not self._is_within_character:
            position -= 1
        self._num_characters_held += len(self._utf8.decode(utf8[1:]))
        return position

    @property
    def _is_within_character(self) -> bool:
        return bool(self._utf8.getstate()[0])


def text_at(place: PlacedToken, token_id: int, pieces: TokenPieces, *, is_placed: bool) -> str:
    """The text of a candidate for a place, or of the token that `is_placed` there."""
    if is_placed and place.text is not None:
        return place.text
    return pieces.text_at_begin(token_id) if place.begins_text else pieces.text(token_id)
