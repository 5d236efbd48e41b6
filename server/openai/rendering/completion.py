"""Renders generations of /v1/completions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from server.http.errors import ApiError
from server.openai.fields.completion import CompletionRequest
from server.openai.rendering.logprobs import CompletionLogprobsBuilder, prompt_logprobs
from server.openai.rendering.sse import EventFrame, failure
from server.requests.choice import TextReason
from server.requests.generation import Piece
from server.requests.planning.plan import Plan
from server.requests.resumption import id_and_created
from server.text.token_texts import TokenTexts
from server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _Collected:
    """The text and fields of one choice of a whole answer so far."""

    texts: list[str] = field(default_factory=list)
    extras: list[dict[str, Any]] = field(default_factory=list)
    ending: dict[str, Any] = field(default_factory=dict)


# Clients of vLLM read these fields of whole answers without a check.
_NOT_ASKED_FOR = dict.fromkeys(("logprobs", "prompt_logprobs", "prompt_token_ids", "token_ids"))
# The request fields that determine the contents of an answer.
_SHOWN = ("logprobs", "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids")


class CompletionRendering:
    """Renders one completion; `echoes` has the text of each prompt if it is returned."""

    def __init__(
        self,
        request: CompletionRequest,
        plan: Plan,
        echoes: Sequence[str],
        tokenizer: Tokenizer,
        fingerprint: str,
    ) -> None:
        self.reply_id, created = id_and_created(plan.resumption, "cmpl-")
        self._request = request.only(*_SHOWN)
        # A prompt that was given as tokens, or was truncated, is echoed with its special tokens.
        self._omits_special = request.has_text_prompts and request.truncate_prompt_tokens is None
        self._plan, self._tokenizer = plan, tokenizer
        self._echoes = echoes
        self._shows_tokens = request.return_token_ids or plan.resumable
        self._shows_only_tokens = self._shows_tokens and request.logprobs is None
        self._is_plain = not (plan.returns_tokens or request.scores_prompt)
        # An echo with log-probabilities or token ids is rendered with the choice's first piece.
        self._echoes_late = bool(echoes) and not self._is_plain
        self._begun: set[int] = set()
        self._logprobs: dict[int, CompletionLogprobsBuilder] = {}
        self._head = {
            "id": self.reply_id,
            "object": "text_completion",
            "created": created,
            "model": plan.model,
            "system_fingerprint": fingerprint,
        }
        self._frame = EventFrame(
            self._head,
            (b'"text":', b""),
            include_usage=request.include_usage,
        )
        self._collected: dict[int, _Collected] = {}

    def opening(self) -> bytes:
        """Return the echoed prompts, or the whole answer if the request asks for no token."""
        return b"".join(map(self.chunk, self._known_pieces()))

    def chunk(self, piece: Piece) -> bytes:
        """Return the events of one piece; the last one has no text, as in a chat."""
        if self._is_plain and piece.finish_reason is None and piece.usage is None:
            return self._frame.text(piece.choice_index, piece.text)
        index = piece.choice_index
        if self._shows_only_tokens and index in self._begun and not _is_special(piece):
            return self._frame.covering_text(index, piece.text, piece.token_ids)
        text, extras = self._shown(piece)
        choice = {"index": index, "text": "", "logprobs": None}
        events = b""
        if text or extras or piece.finish_reason is None:
            part = choice | {"text": text} | extras | {"finish_reason": None}
            events = self._frame.choice(part, usage=piece.usage)
        if piece.finish_reason is not None:
            end = choice | self._no_tokens(index) | _ending(piece)
            events += self._frame.choice(end, usage=piece.usage)
        return events

    def skip(self, piece: Piece) -> None:
        """Take a piece whose events the client has already."""
        self.chunk(piece)

    def closing(self, usage: dict[str, Any]) -> bytes:
        """Return the events after the last choice: the token counts, if asked for, and the end."""
        return self._frame.closing(usage)

    def failure(self, error: ApiError) -> bytes:
        """Return the events that end a stream that has failed."""
        return failure(error)

    def take(self, piece: Piece) -> None:
        """Collect a piece of a whole answer."""
        collected = self._of(piece.choice_index)
        text, extras = self._shown(piece)
        collected.texts.append(text)
        if extras:
            collected.extras.append(extras)
        if piece.finish_reason is not None:
            collected.ending = _ending(piece)

    def whole(self, usage: dict[str, Any]) -> bytes:
        """Return the JSON of the collected answer."""
        known = self._known_pieces()
        for piece in known:
            if piece.finish_reason is not None:
                self.take(piece)
            else:
                self._of(piece.choice_index).texts.insert(0, piece.text)
        choices = []
        for index in range(self._plan.num_sequences):
            collected = self._of(index)
            choice = {"index": index, "text": "".join(collected.texts)} | _NOT_ASKED_FOR
            choices.append(choice | _joined(collected.extras) | collected.ending)
        return msgspec.json.encode(self._head | {"choices": choices, "usage": usage})

    def _of(self, index: int) -> _Collected:
        return self._collected.setdefault(index, _Collected())

    def _known_pieces(self) -> list[Piece]:
        """Return the pieces that need no output of the engine."""
        is_all = not any(self._plan.max_tokens)
        echoes_now = bool(self._echoes) and not self._echoes_late
        if not is_all and not echoes_now:
            return []
        reason: TextReason | None = "length" if is_all else None
        resumption = self._plan.resumption
        finished = resumption.finished if resumption else ()
        return [
            Piece(index, self._echo(index) if echoes_now else "", reason)
            for index in range(self._plan.num_sequences)
            if index not in finished
        ]

    def _echo(self, index: int) -> str:
        return self._echoes[index // self._plan.n] if self._echoes else ""

    def _shown(self, piece: Piece) -> tuple[str, dict[str, Any]]:
        """Return the text of a piece and the fields next to it."""
        if self._is_plain:
            return piece.text, {}
        request, index = self._request, piece.choice_index
        extras: dict[str, Any] = {}
        text = piece.text
        if index not in self._begun:
            self._begun.add(index)
            text, extras = self._echo(index) + text, self._of_prompt(piece)
        if request.logprobs is not None:
            logprobs = self._logprobs[index].of(piece.logprobs)
            extras["logprobs"] = _joined([extras, {"logprobs": logprobs}])["logprobs"]
        if self._shows_tokens:
            extras["token_ids"] = list(piece.token_ids)
        return text, extras

    def _no_tokens(self, index: int) -> dict[str, Any]:
        """Return the fields about tokens of an event without any, if the request asks for them."""
        extras: dict[str, Any] = {}
        if index in self._logprobs:
            extras["logprobs"] = self._logprobs[index].of(())
        if self._shows_tokens:
            extras["token_ids"] = []
        return extras

    def _of_prompt(self, piece: Piece) -> dict[str, Any]:
        """Return the fields about a choice's prompt, which the first piece of the choice has."""
        request, index, tokenizer = self._request, piece.choice_index, self._tokenizer
        prompt = self._plan.prompts[index // self._plan.n]
        extras: dict[str, Any] = {}
        if request.logprobs is not None:
            skips = self._plan.skip_special_tokens
            after = tokenizer.prompt_end(prompt, skip_special_tokens=skips)
            logprobs = self._logprobs[index] = CompletionLogprobsBuilder(
                tokenizer.pieces,
                request.logprobs,
                tokenizer.token_texts(skip_special_tokens=skips, after=after),
                as_ids=request.return_tokens_as_token_ids,
            )
            if self._echoes:
                text = self._echo(index)
                extras["logprobs"] = logprobs.of_prompt(
                    prompt,
                    piece.scores,
                    text,
                    self._prompt_texts(),
                    partial(tokenizer.offsets, text, prompt),
                )
        if request.prompt_logprobs is not None:
            extras["prompt_logprobs"] = prompt_logprobs(
                prompt,
                piece.scores,
                request.prompt_logprobs,
                tokenizer.pieces,
                self._prompt_texts(),
            )
        if request.return_token_ids:
            extras["prompt_token_ids"] = list(prompt)
        return extras

    def _prompt_texts(self) -> TokenTexts:
        return self._tokenizer.token_texts(skip_special_tokens=self._omits_special)


def _is_special(piece: Piece) -> bool:
    """Whether the events of a piece have more than its text and tokens."""
    return piece.finish_reason is not None or piece.usage is not None


def _ending(piece: Piece) -> dict[str, Any]:
    ending: dict[str, Any] = {"finish_reason": piece.finish_reason}
    if piece.finish_reason is not None:
        ending["stop_reason"] = piece.stop_reason
    return ending


def _joined(extras: list[dict[str, Any]]) -> dict[str, Any]:
    """Concatenate the fields next to the text of each piece."""
    joined: dict[str, Any] = {}
    for fields in extras:
        for name, value in fields.items():
            if isinstance(value, dict):
                before = joined.setdefault(name, {key: [] for key in value})
                for key, column in value.items():
                    before[key] += column
            else:
                joined.setdefault(name, [])
                joined[name] += value
    return joined
