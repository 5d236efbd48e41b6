"""How /v1/completions shows a generation."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server.choice import TextReason
from server.event_stream import EventFrame
from server.generation import Piece
from server.logprobs import CompletionLogprobs, prompt_logprobs
from server.plan import Plan
from server.protocol import CompletionRequest
from server.tokenizer import Tokenizer


@dataclass(slots=True)
class _Collected:
    """One choice of a whole answer as far as it has come."""

    texts: list[str] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)
    ending: dict[str, Any] = field(default_factory=dict)


class CompletionRendering:
    """One completion; `echoes` holds the text of each prompt where it is told."""

    def __init__(
        self,
        request: CompletionRequest,
        plan: Plan,
        echoes: Sequence[str],
        tokenizer: Tokenizer,
    ) -> None:
        self.reply_id = f"cmpl-{uuid.uuid4().hex}"
        self._request, self._plan, self._tokenizer = request, plan, tokenizer
        self._echoes = echoes
        # A prompt that is scored comes with its scores, on the choice's first piece.
        self._echoes_late = bool(echoes) and request.logprobs is not None
        self._is_plain = not (plan.tells_tokens or request.scores_prompt)
        self._logprobs: dict[int, CompletionLogprobs] = {}
        self._head = {
            "id": self.reply_id,
            "object": "text_completion",
            "created": int(time.time()),
            "model": plan.model,
        }
        self._frame = EventFrame(self._head, (b'"text":', b""), include_usage=request.include_usage)
        self._collected: dict[int, _Collected] = {}

    def opening(self) -> bytes:
        """The prompts that are echoed, or all there is where no token is asked for."""
        return b"".join(map(self.chunk, self._known_pieces()))

    def chunk(self, piece: Piece) -> bytes:
        """The event for one piece."""
        if self._is_plain and piece.finish_reason is None:
            return self._frame.text(piece.choice_index, piece.text)
        text, extras = self._shown(piece)
        choice = {"index": piece.choice_index, "text": text, "logprobs": None} | extras
        return self._frame.choice(choice | _ending(piece))

    def usage(self, usage: dict[str, int]) -> bytes:
        """The event that follows the last choice: no choices, but the token counts."""
        return self._frame.no_choice({"usage": usage})

    def take(self, piece: Piece) -> None:
        """Collect a piece of a whole answer."""
        collected = self._collected.setdefault(piece.choice_index, _Collected())
        text, extras = self._shown(piece)
        collected.texts.append(text)
        if extras:
            collected.extras.append(extras)
        if piece.finish_reason is not None:
            collected.ending = _ending(piece)

    def whole(self, usage: dict[str, int]) -> bytes:
        """The collected answer's JSON."""
        early = {piece.choice_index: piece for piece in self._known_pieces()}
        choices = []
        for index in range(self._plan.num_sequences):
            collected = self._collected.get(index, _Collected())
            text = "".join(collected.texts)
            ending = collected.ending
            if index in early:
                text, ending = early[index].text + text, ending or _ending(early[index])
            choice = {"index": index, "text": text, "logprobs": None}
            choices.append(choice | _joined(collected.extras) | ending)
        return msgspec.json.encode(self._head | {"choices": choices, "usage": usage})

    def _known_pieces(self) -> list[Piece]:
        """What is known without the engine."""
        is_all = not any(self._plan.max_tokens)
        if not is_all and (self._echoes_late or not self._echoes):
            return []
        reason: TextReason | None = "length" if is_all else None
        return [
            Piece(index, self._echo(index), reason) for index in range(self._plan.num_sequences)
        ]

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._plan.n] if self._echoes else ""

    def _shown(self, piece: Piece) -> tuple[str, dict[str, Any]]:
        """The piece's text and what is told beside it."""
        if self._is_plain:
            return piece.text, {}
        request, index = self._request, piece.choice_index
        prompt = self._plan.prompts[index // self._plan.n]
        is_first, text = index not in self._logprobs, piece.text
        extras: dict[str, Any] = {}
        told, first = piece.told, None
        if is_first:
            num_tops = request.logprobs or 0
            self._logprobs[index] = CompletionLogprobs(self._tokenizer.pieces, num_tops)
        if is_first and self._echoes_late:
            text, told, first = self._echo(index) + text, [*piece.scores, *told], prompt[0]
        if request.logprobs is not None:
            extras["logprobs"] = self._logprobs[index].of(told, first)
        if is_first and request.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(piece.scores, self._tokenizer.pieces)
        if request.return_token_ids:
            if is_first:
                extras["prompt_token_ids"] = list(prompt)
            extras["token_ids"] = list(piece.token_ids)
        return text, extras


def _ending(piece: Piece) -> dict[str, Any]:
    ending: dict[str, Any] = {"finish_reason": piece.finish_reason}
    if piece.finish_reason is not None:
        ending["stop_reason"] = piece.stop_reason
    return ending


def _joined(extras: list[dict[str, Any]]) -> dict[str, Any]:
    """What was told beside each piece, end to end."""
    joined: dict[str, Any] = {}
    for told in extras:
        for name, value in told.items():
            if isinstance(value, dict):
                before = joined.setdefault(name, {key: [] for key in value})
                for key, column in value.items():
                    before[key] += column
            else:
                joined.setdefault(name, [])
                joined[name] += value
    return joined
