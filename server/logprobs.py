"""Log-probabilities as clients read them: OpenAI's two shapes, and vLLM's of prompts."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from engine.messages import Logprobs
from server.token_pieces import TokenPieces

# JSON has no infinity; what cannot happen is at least this unlikely.
_LEAST = -9999.0


class Told(NamedTuple):
    """What is told of one position: the token that came, its rank from 1, and the likeliest."""

    token_id: int
    logprob: float
    rank: int
    tops: tuple[tuple[int, float], ...]

    @property
    def all(self) -> dict[int, tuple[float, int]]:
        """Log-probability and rank of the likeliest tokens and of the one that came."""
        tops = {id_: (logprob, i + 1) for i, (id_, logprob) in enumerate(self.tops)}
        return tops | {self.token_id: (self.logprob, self.rank)}


def unpack(logprobs: Logprobs, token_ids: Sequence[int]) -> Iterator[tuple[int, Told]]:
    """Each position that something is told of, and what; `token_ids` are those of all positions."""
    indices, num_tops = array("i", logprobs.indices), array("i", logprobs.num_tops)
    chosen, ranks = array("f", logprobs.chosen), array("i", logprobs.ranks)
    tops = list(zip(array("i", logprobs.top_ids), _finite(array("f", logprobs.tops)), strict=True))
    starts = accumulate(num_tops, initial=0)
    for index, logprob, rank, start, count in zip(
        indices, _finite(chosen), ranks, starts, num_tops, strict=False
    ):
        yield index, Told(token_ids[index], logprob, rank, tuple(tops[start : start + count]))


class CompletionLogprobs:
    """The `logprobs` of one choice of a completion, as far as its tokens have come.

    `None` stands for a prompt's first token, of which a model says nothing.
    """

    def __init__(self, pieces: TokenPieces, num_tops: int) -> None:
        self._pieces = pieces
        self._num_tops = num_tops
        self._offset = 0

    def of(self, told: Sequence[Told], first: int | None = None) -> dict[str, Any]:
        """Of the next tokens; `first` is the prompt's first one, where the prompt comes now."""
        text = self._pieces.text
        tokens = [] if first is None else [text(first)]
        tokens += [text(position.token_id) for position in told]
        offsets = list(accumulate(map(len, tokens), initial=self._offset))
        self._offset = offsets.pop()
        unknown = [] if first is None else [None]
        return {
            "tokens": tokens,
            "token_logprobs": unknown + [position.logprob for position in told],
            "top_logprobs": unknown + [self._tops(position) for position in told],
            "text_offset": offsets,
        }

    def _tops(self, told: Told) -> dict[str, float]:
        """By text; of tokens that look the same, the likeliest."""
        tops: dict[str, float] = {}
        likeliest = (*told.tops[: self._num_tops], (told.token_id, told.logprob))
        for token_id, logprob in likeliest:
            text = self._pieces.text(token_id)
            tops[text] = max(logprob, tops.get(text, logprob))
        return tops


def chat_logprobs(told: Sequence[Told], pieces: TokenPieces) -> list[dict[str, Any]]:
    """The `logprobs.content` of a chat's choice, one for each token."""
    return [
        _chat_token(position.token_id, position.logprob, pieces)
        | {"top_logprobs": [_chat_token(*top, pieces) for top in position.tops]}
        for position in told
    ]


def prompt_logprobs(told: Sequence[Told], pieces: TokenPieces) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: for each token but the first, all that is known by token id."""
    return [None] + [
        {
            str(id_): {"logprob": logprob, "rank": rank, "decoded_token": pieces.text(id_)}
            for id_, (logprob, rank) in position.all.items()
        }
        for position in told
    ]


def _chat_token(token_id: int, logprob: float, pieces: TokenPieces) -> dict[str, Any]:
    return {"token": pieces.text(token_id), "logprob": logprob, "bytes": pieces.bytes(token_id)}


def _finite(values: Iterable[float]) -> list[float]:
    return [max(value, _LEAST) for value in values]
