"""Log-probabilities in the response: OpenAI's two formats, and vLLM's format for prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from server.requests.logprobs import TokenLogprobs
from server.text.prompt_end import HALF_CHARACTER
from server.text.token_pieces import TokenPieces
from server.text.token_texts import PlacedToken, TokenTexts, text_at

_encode = msgspec.json.Encoder().encode


class CompletionLogprobsBuilder:
    """Builds the `logprobs` of one choice of a completion while its tokens arrive.

    The offset of a token is the position of its text in the text of the choice; tokens that form
    one character have the same offset. The first token of a prompt has `None`, because the model
    does not predict it. `texts` follows the output. With `as_ids`, a token is represented by its
    id.
    """

    def __init__(
        self, pieces: TokenPieces, num_tops: int, texts: TokenTexts, *, as_ids: bool
    ) -> None:
        self._pieces = pieces
        self._num_tops = num_tops
        self._texts = texts
        self._as_ids = as_ids
        self._num_echoed = 0

    def of_prompt(
        self,
        token_ids: Sequence[int],
        scores: Sequence[TokenLogprobs],
        text: str,
        texts: TokenTexts,
        offsets: Callable[[], list[int] | None],
    ) -> dict[str, list[Any]]:
        """Return the `logprobs` of a prompt that is echoed as `text`.

        `texts` follows the prompt. `offsets` returns the tokens' offsets in a text that differs
        from the decoded one in length, if they are known.
        """
        placed = [texts.push(token_id) for token_id in token_ids]
        texts.flush()
        self._num_echoed = len(text)
        places = [token.offset for token in placed]
        if texts.num_characters != len(text):
            places = offsets() or [min(place, len(text)) for place in places]
        return {
            "tokens": list(map(self._name, token_ids, placed)),
            "token_logprobs": [None, *(position.logprob for position in scores)],
            "top_logprobs": [None, *map(self._tops, scores, placed[1:])],
            "text_offset": places,
        }

    def of(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """Return the `logprobs` of the next tokens."""
        placed = [self._texts.push(position.token_id) for position in logprobs]
        return {
            "tokens": [
                self._name(position.token_id, token)
                for position, token in zip(logprobs, placed, strict=True)
            ],
            "token_logprobs": [position.logprob for position in logprobs],
            "top_logprobs": list(map(self._tops, logprobs, placed)),
            "text_offset": [self._num_echoed + token.offset for token in placed],
        }

    def _tops(self, position: TokenLogprobs, placed: PlacedToken) -> dict[str, float]:
        """Return log-probabilities by name; if tokens have equal names, that of the most likely."""
        tops: dict[str, float] = {}
        for token_id, logprob in (
            *position.tops[: self._num_tops],
            (position.token_id, position.logprob),
        ):
            name = self._name(token_id, placed, is_placed=token_id == position.token_id)
            tops[name] = max(logprob, tops.get(name, logprob))
        return tops

    def _name(self, token_id: int, place: PlacedToken, *, is_placed: bool = True) -> str:
        """Return the text that represents a token or a candidate at this place."""
        if self._as_ids:
            return f"token_id:{token_id}"
        text = text_at(place, token_id, self._pieces, is_placed=is_placed)
        return text if HALF_CHARACTER not in text else self._pieces.name(token_id)


def chat_logprobs(
    logprobs: Sequence[TokenLogprobs], pieces: TokenPieces, *, as_ids: bool = False
) -> list[msgspec.Raw]:
    """Return the `logprobs.content` of a chat choice: one JSON object for each token.

    With `as_ids`, a token is represented by its id.
    """

    def token(token_id: int, logprob: float) -> dict[str, Any]:
        text = f"token_id:{token_id}" if as_ids else pieces.text(token_id)
        return {"token": text, "logprob": logprob, "bytes": pieces.bytes(token_id)}

    return [
        _encoded(
            token(position.token_id, position.logprob)
            | {"top_logprobs": [token(*top) for top in position.tops]}
        )
        for position in logprobs
    ]


def prompt_logprobs(
    prompt: Sequence[int],
    logprobs: Sequence[TokenLogprobs],
    num_tops: int,
    pieces: TokenPieces,
    texts: TokenTexts,
) -> list[msgspec.Raw | None]:
    """Return vLLM's `prompt_logprobs`: for each token except the first, candidates by token id.

    `texts` follows the prompt.
    """
    placed = [texts.push(token_id) for token_id in prompt]
    return [None] + [
        _encoded(
            {
                str(id_): {
                    "logprob": logprob,
                    "rank": rank,
                    "decoded_token": text_at(
                        place, id_, pieces, is_placed=id_ == position.token_id
                    ),
                }
                for id_, (logprob, rank) in position.all(num_tops).items()
            }
        )
        for position, place in zip(logprobs, placed[1:], strict=False)
    ]


def _encoded(fields: dict[str, Any]) -> msgspec.Raw:
    """Encode as JSON, which takes 90 bytes instead of 270; an answer may have a million tokens."""
    return msgspec.Raw(_encode(fields))
