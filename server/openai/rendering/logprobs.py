"""Log-probabilities in the response: OpenAI's two formats, and vLLM's format for prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from server.requests.logprobs import TokenLogprobs
from server.text.detokenizer import Detokenizer
from server.text.token_pieces import TokenPieces

_encode = msgspec.json.Encoder().encode


class CompletionLogprobsBuilder:
    """Builds the `logprobs` of one choice of a completion while its tokens arrive.

    The offset of a token is the position of its text in the text of the choice; tokens that form
    one character have the same offset. The first token of a prompt has `None`, because the model
    does not predict it. `name` returns the text that represents a token.
    """

    def __init__(self, name: Callable[[int], str], num_tops: int, detokenizer: Detokenizer) -> None:
        self._name = name
        self._num_tops = num_tops
        self._detokenizer = detokenizer
        self._offset = 0

    def of_prompt(
        self,
        token_ids: Sequence[int],
        scores: Sequence[TokenLogprobs],
        text: str,
        detokenizer: Detokenizer,
    ) -> dict[str, list[Any]]:
        """Return the `logprobs` of a prompt that is echoed as `text`."""
        offsets = self._offsets(token_ids, detokenizer)
        self._offset = len(text)
        return {
            "tokens": [self._name(token_id) for token_id in token_ids],
            "token_logprobs": [None, *(position.logprob for position in scores)],
            "top_logprobs": [None, *map(self._tops, scores)],
            "text_offset": offsets,
        }

    def of(self, logprobs: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """Return the `logprobs` of the next tokens."""
        token_ids = [position.token_id for position in logprobs]
        return {
            "tokens": [self._name(token_id) for token_id in token_ids],
            "token_logprobs": [position.logprob for position in logprobs],
            "top_logprobs": [self._tops(position) for position in logprobs],
            "text_offset": self._offsets(token_ids, self._detokenizer),
        }

    def _offsets(self, token_ids: Sequence[int], detokenizer: Detokenizer) -> list[int]:
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(detokenizer.push(token_id))
        return offsets

    def _tops(self, position: TokenLogprobs) -> dict[str, float]:
        """Return log-probabilities by name; if tokens have equal names, that of the most likely."""
        tops: dict[str, float] = {}
        for token_id, logprob in (
            *position.tops[: self._num_tops],
            (position.token_id, position.logprob),
        ):
            name = self._name(token_id)
            tops[name] = max(logprob, tops.get(name, logprob))
        return tops


def chat_logprobs(logprobs: Sequence[TokenLogprobs], pieces: TokenPieces) -> list[msgspec.Raw]:
    """Return the `logprobs.content` of a chat choice: one JSON object for each token."""
    return [
        _encoded(
            _chat_token(position.token_id, position.logprob, pieces)
            | {"top_logprobs": [_chat_token(*top, pieces) for top in position.tops]}
        )
        for position in logprobs
    ]


def prompt_logprobs(
    logprobs: Sequence[TokenLogprobs], num_tops: int, pieces: TokenPieces
) -> list[msgspec.Raw | None]:
    """Return vLLM's `prompt_logprobs`: for each token except the first, candidates by token id."""
    return [None] + [
        _encoded(
            {
                str(id_): {"logprob": logprob, "rank": rank, "decoded_token": pieces.text(id_)}
                for id_, (logprob, rank) in position.all(num_tops).items()
            }
        )
        for position in logprobs
    ]


def _chat_token(token_id: int, logprob: float, pieces: TokenPieces) -> dict[str, Any]:
    return {"token": pieces.text(token_id), "logprob": logprob, "bytes": pieces.bytes(token_id)}


def _encoded(fields: dict[str, Any]) -> msgspec.Raw:
    """Encode as JSON, which takes 90 bytes instead of 270; an answer may have a million tokens."""
    return msgspec.Raw(_encode(fields))
