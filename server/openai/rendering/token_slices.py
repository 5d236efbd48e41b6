"""Token slices: the parts of a choice's text that its tokens are.

Log-probabilities of a message must be those of the message's tokens only. So the text is given to
the parsers token by token, and each token belongs to the part of the answer that gets its text.
"""

from collections import deque
from collections.abc import Iterator

from server.requests.generation import Piece
from server.requests.logprobs import TokenLogprobs
from server.text.token_texts import TokenTexts


class TokenSlices:
    """Splits the pieces of one choice; `texts` follows its output."""

    def __init__(self, texts: TokenTexts) -> None:
        self._texts = texts
        self._waiting: deque[tuple[int, TokenLogprobs]] = deque()  # offset in the text, token
        self._num_characters = 0

    def of(self, piece: Piece) -> Iterator[tuple[str, list[TokenLogprobs]]]:
        """Yield slices of the piece's text, each with the tokens that begin in it.

        Tokens whose text is held back are in a later slice; a token without a text, such as an end
        token, may be in none.
        """
        for position in piece.logprobs:
            self._waiting.append((self._texts.push(position.token_id).offset, position))
        begin, end = self._num_characters, self._num_characters + len(piece.text)
        self._num_characters = end
        at = begin
        while at < end:
            tokens: list[TokenLogprobs] = []
            while self._waiting and self._waiting[0][0] <= at:
                tokens.append(self._waiting.popleft()[1])
            until = min(self._waiting[0][0], end) if self._waiting else end
            yield piece.text[at - begin : until - begin], tokens
            at = until


class HeldTokens:
    """The slices that the parsers have read, until they return the content that these are."""

    def __init__(self) -> None:
        self._slices: list[tuple[str, list[TokenLogprobs]]] = []

    def push(self, text: str, tokens: list[TokenLogprobs]) -> None:
        """Add a slice; text that no token begins is the rest of the slice before it."""
        if tokens or self._slices:
            self._slices.append((text, tokens))

    def take(self, content: str) -> list[TokenLogprobs]:
        """Remove the tokens up to the end of `content`, and return those that are part of it.

        Tokens before it are tags, and white space around them; tokens after it are held back.
        """
        if not content or not self._slices:
            return []
        begin = "".join(text for text, _ in self._slices).find(content)
        end = begin + len(content)
        taken: list[TokenLogprobs] = []
        at = 0
        while self._slices and at < end:
            text, tokens = self._slices.pop(0)
            at += len(text)
            taken += tokens if at > begin else []
        return taken
