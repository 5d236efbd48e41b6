"""Log-probabilities as clients read them: OpenAI's two shapes, and vLLM's of prompts."""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from server.text.detokenizer import Detokenizer
from server.text.token_pieces import TokenPieces
from wire.messages import Logprobs

_encode = msgspec.json.Encoder().encode
# JSON has no infinity; what cannot happen is at least this unlikely.
_LEAST = -9999.0


class TokenLogprobs(NamedTuple):
    """What is told of one position: the token that came, its rank from 1, and the likeliest."""

    token_id: int
    logprob: float
    rank: int
    tops: tuple[tuple[int, float], ...]

    def all(self, num_tops: int) -> dict[int, tuple[float, int]]:
        """Log-probability and rank of so many likeliest tokens and of the one that came."""
        tops = {id_: (logprob, i + 1) for i, (id_, logprob) in enumerate(self.tops[:num_tops])}
        return tops | {self.token_id: (self.logprob, self.rank)}


def unpack(logprobs: Logprobs, token_ids: Sequence[int]) -> Iterator[tuple[int, TokenLogprobs]]:
    """Each position that something is told of, and what; `token_ids` are those of all positions."""
    indices, num_tops = array("i", logprobs.indices), array("i", logprobs.num_tops)
    chosen, ranks = array("f", logprobs.chosen), array("i", logprobs.ranks)
    tops = list(zip(array("i", logprobs.top_ids), _finite(array("f", logprobs.tops)), strict=True))
    starts = accumulate(num_tops, initial=0)
    for index, logprob, rank, start, count in zip(
        indices, _finite(chosen), ranks, starts, num_tops, strict=False
    ):
        yield (
            index,
            TokenLogprobs(token_ids[index], logprob, rank, tuple(tops[start : start + count])),
        )


class CompletionLogprobs:
    """The `logprobs` of one choice of a completion, as far as its tokens have come.

    A token's offset is where its text begins in the choice's; of a character that several tokens
    make, all have the offset of its beginning. `None` stands for a prompt's first token, of which a
    model says nothing. `name` is how a token is written.
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
        """Of a prompt that is echoed as `text`."""
        offsets = self._offsets(token_ids, detokenizer)
        self._offset = len(text)
        return {
            "tokens": [self._name(token_id) for token_id in token_ids],
            "token_logprobs": [None, *(position.logprob for position in scores)],
            "top_logprobs": [None, *map(self._tops, scores)],
            "text_offset": offsets,
        }

    def of(self, told: Sequence[TokenLogprobs]) -> dict[str, list[Any]]:
        """Of the next tokens."""
        token_ids = [position.token_id for position in told]
        return {
            "tokens": [self._name(token_id) for token_id in token_ids],
            "token_logprobs": [position.logprob for position in told],
            "top_logprobs": [self._tops(position) for position in told],
            "text_offset": self._offsets(token_ids, self._detokenizer),
        }

    def _offsets(self, token_ids: Sequence[int], detokenizer: Detokenizer) -> list[int]:
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(detokenizer.push(token_id))
        return offsets

    def _tops(self, told: TokenLogprobs) -> dict[str, float]:
        """By name; of tokens that look the same, the likeliest."""
        tops: dict[str, float] = {}
        for token_id, logprob in (*told.tops[: self._num_tops], (told.token_id, told.logprob)):
            name = self._name(token_id)
            tops[name] = max(logprob, tops.get(name, logprob))
        return tops


def chat_logprobs(told: Sequence[TokenLogprobs], pieces: TokenPieces) -> list[msgspec.Raw]:
    """The `logprobs.content` of a chat's choice, one for each token, in JSON."""
    return [
        _encoded(
            _chat_token(position.token_id, position.logprob, pieces)
            | {"top_logprobs": [_chat_token(*top, pieces) for top in position.tops]}
        )
        for position in told
    ]


def prompt_logprobs(
    told: Sequence[TokenLogprobs], num_tops: int, pieces: TokenPieces
) -> list[msgspec.Raw | None]:
    """vLLM's `prompt_logprobs`: for each token but the first, all that is known by token id."""
    return [None] + [
        _encoded(
            {
                str(id_): {"logprob": logprob, "rank": rank, "decoded_token": pieces.text(id_)}
                for id_, (logprob, rank) in position.all(num_tops).items()
            }
        )
        for position in told
    ]


def _chat_token(token_id: int, logprob: float, pieces: TokenPieces) -> dict[str, Any]:
    return {"token": pieces.text(token_id), "logprob": logprob, "bytes": pieces.bytes(token_id)}


def _encoded(told: dict[str, Any]) -> msgspec.Raw:
    """In JSON, which takes 90 bytes where its objects took 270: there may be a million."""
    return msgspec.Raw(_encode(told))


def _finite(values: Iterable[float]) -> list[float]:
    return [max(value, _LEAST) for value in values]
