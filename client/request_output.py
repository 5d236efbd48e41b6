"""The outputs of the offline interface, with vLLM's classes and fields."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from server.requests.choice import TextReason
from server.requests.generation import Piece
from server.requests.logprobs import TokenLogprobs
from server.text.token_pieces import TokenPieces
from server.text.token_texts import TokenTexts, text_at


@dataclass(frozen=True)
class Logprob:
    """The log-probability of a token at one position; the most likely token has rank 1."""

    logprob: float
    rank: int
    decoded_token: str


@dataclass
class CompletionOutput:
    """One answer to a prompt. `token_ids` includes the token that ended it, `text` does not."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: TextReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[dict[int, Logprob]] | None = None

    @property
    def cumulative_logprob(self) -> float | None:
        """The log-probability of the whole answer, if logprobs were requested."""
        if self.logprobs is None:
            return None
        pairs = zip(self.token_ids, self.logprobs, strict=True)
        return sum(place[token_id].logprob for token_id, place in pairs)


@dataclass
class RequestOutput:
    """A prompt and its answers; `prompt` is None if it was given as token ids.

    The first `num_cached_tokens` tokens of the prompt were in the prefix cache.
    """

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = True
    num_cached_tokens: int = 0

    def take(
        self, piece: Piece, pieces: TokenPieces, prompt: TokenTexts, outputs: Sequence[TokenTexts]
    ) -> None:
        """Add a piece of a generation.

        `prompt` and `outputs` follow the tokens of the prompt and of each output.
        """
        output = self.outputs[piece.choice_index]
        output.text += piece.text
        output.token_ids += piece.token_ids
        output.finish_reason = piece.finish_reason
        output.stop_reason = piece.stop_reason
        if output.logprobs is not None:
            output.logprobs += _places(piece.logprobs, pieces, outputs[piece.choice_index])
        if piece.scores and not piece.choice_index:
            prompt.push(self.prompt_token_ids[0])
            self.prompt_logprobs = [None, *_places(piece.scores, pieces, prompt)]


def _places(
    tokens: Sequence[TokenLogprobs], pieces: TokenPieces, texts: TokenTexts
) -> list[dict[int, Logprob]]:
    places = [texts.push(token.token_id) for token in tokens]
    return [
        {
            id_: Logprob(
                logprob, rank, text_at(place, id_, pieces, is_placed=id_ == token.token_id)
            )
            for id_, (logprob, rank) in token.all(len(token.tops)).items()
        }
        for token, place in zip(tokens, places, strict=True)
    ]
