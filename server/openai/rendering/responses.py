"""Renders generations of /v1/responses."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from server.chat.message_parser import MessageParser
from server.http.bodies.body import Body
from server.http.errors import ApiError
from server.openai.fields.responses import ResponsesRequest
from server.openai.rendering.logprobs import chat_logprobs
from server.openai.rendering.response_output import Event, ResponseOutput
from server.openai.rendering.token_slices import HeldTokens, TokenSlices
from server.requests.generation import Piece
from server.requests.logprobs import TokenLogprobs
from server.requests.planning.plan import Plan
from server.requests.resumption import Resumption, id_and_created
from server.text.tokenizer import Tokenizer

NUM_OPENING = 2  # events

_encode = msgspec.json.Encoder().encode


class ResponsesRendering:
    """Renders one response; `new_parser` creates its parser if there is one."""

    def __init__(
        self,
        request: ResponsesRequest,
        plan: Plan,
        tokenizer: Tokenizer,
        new_parser: Callable[[], MessageParser] | None,
    ) -> None:
        self.reply_id, self._created_at = id_and_created(plan.resumption, "resp_")
        self._is_resumable, self._resumption = plan.resumable, plan.resumption
        self._tokenizer = tokenizer
        self._parser = new_parser() if new_parser else MessageParser(None, None)
        self._output = ResponseOutput(self.reply_id)
        self._slices = None
        if request.returns_logprobs:
            skips = plan.skip_special_tokens
            after = tokenizer.prompt_end(plan.prompts[0], skip_special_tokens=skips)
            texts = tokenizer.token_texts(skip_special_tokens=skips, after=after)
            self._slices = TokenSlices(texts)
        self._held = HeldTokens()
        self._is_incomplete = False
        self._sequence_number = _first_number(plan.resumption)
        self._uncovered: list[int] = []  # tokens that no event has had yet
        self._unsent: list[Event] = []
        self._text_place: tuple[str, int] | None = None
        self._text_frame = b""
        self._settings = _settings(request, plan)

    def opening(self) -> bytes:
        """Return the events that announce the response; none if the client has them."""
        if self._resumption is not None:
            return b""
        response = self._response("in_progress")
        kinds = ("response.created", "response.in_progress")
        return self._encoded({"type": kind, "response": response} for kind in kinds)

    def chunk(self, piece: Piece) -> bytes:
        """Return the events of one piece."""
        if self._slices is not None or piece.finish_reason is not None:
            return self._sent(piece, self._push(piece))
        delta = self._parser.push(piece.text, is_last=False)
        is_all = bool(delta.content) and not delta.reasoning and not delta.calls
        place = self._output.grow(delta.content) if is_all and not self._unsent else None
        if place is None:
            return self._sent(piece, self._output.push(delta, []))
        self._uncovered += piece.token_ids
        return self._text_event(place, delta.content)

    def skip(self, piece: Piece) -> None:
        """Take a piece whose events the client has already.

        Unless the request says how many they were, there was at most one more for each token.
        """
        number = self._sequence_number
        self.chunk(piece)
        if self._resumption is not None and self._resumption.sequence_number is not None:
            self._sequence_number = number
        else:
            self._sequence_number += len(piece.token_ids)

    def closing(self, usage: dict[str, Any]) -> bytes:
        """Return the last events, which end with the whole response."""
        status = "incomplete" if self._is_incomplete else "completed"
        response = self._response(status, usage)
        last = {"type": f"response.{status}", "response": response}
        return self._encoded([*self._unsent, last])

    def failure(self, error: ApiError) -> bytes:
        """Return the events that end a stream that has failed."""
        response = self._response("failed", error=error)
        failed = {"type": "response.failed", "response": response}
        return self._encoded([*self._unsent, {"type": "error"} | error.details, failed])

    def take(self, piece: Piece) -> None:
        """Collect a piece of a whole answer."""
        for _ in self._push(piece):
            pass

    def whole(self, usage: dict[str, Any]) -> bytes:
        """Return the JSON of the collected answer."""
        return _encode(self._response("incomplete" if self._is_incomplete else "completed", usage))

    def _sent(self, piece: Piece, of_piece: Iterable[Event]) -> bytes:
        """Return the events of one piece. In a resumable stream, the last delta has the tokens.

        Its events wait for a delta, and the last ones for the end: so the events that a client has
        are always those of the tokens in them.
        """
        if not self._is_resumable:
            return self._encoded(of_piece)
        self._uncovered += piece.token_ids
        self._unsent += of_piece
        deltas = [event for event in self._unsent if "delta" in event]
        if deltas:
            deltas[-1]["token_ids"], self._uncovered = self._uncovered, []
        if not deltas or piece.finish_reason is not None:
            return b""
        events, self._unsent = self._unsent, []
        return self._encoded(events)

    def _push(self, piece: Piece) -> Iterable[Event]:
        is_last = piece.finish_reason is not None
        if self._slices is not None:
            for text, tokens in self._slices.of(piece):
                yield from self._push_text(text, tokens)
            yield from self._push_text("", [], is_last=is_last)
        else:
            yield from self._push_text(piece.text, [], is_last=is_last)
        if is_last:
            self._is_incomplete = piece.finish_reason == "length"
            yield from self._output.finish("incomplete" if self._is_incomplete else "completed")

    def _push_text(
        self, text: str, tokens: list[TokenLogprobs], *, is_last: bool = False
    ) -> Iterable[Event]:
        """Parse the next text; only the tokens of messages are kept."""
        delta = self._parser.push(text, is_last=is_last)
        self._held.push(text, tokens)
        logprobs = chat_logprobs(self._held.take(delta.content), self._tokenizer.pieces)
        if delta.reasoning or delta.calls:
            self._held = HeldTokens()
        return self._output.push(delta, logprobs)

    def _response(
        self, status: str, usage: dict[str, Any] | None = None, *, error: ApiError | None = None
    ) -> dict[str, Any]:
        is_incomplete = status == "incomplete"
        failure = error and {"code": "server_error", "message": str(error)}
        return {
            "id": self.reply_id,
            "object": "response",
            "created_at": self._created_at,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "error": failure,
            "incomplete_details": {"reason": "max_output_tokens"} if is_incomplete else None,
            "output": self._output.items,
            "usage": usage and _usage(usage),
        } | self._settings

    def _text_event(self, place: tuple[str, int], text: str) -> bytes:
        """Return the event for new text of a message.

        Most events are of this kind, so the rest of it is encoded only once.
        """
        if self._text_place != place:
            self._text_place = place
            event = {"type": "response.output_text.delta", "content_index": 0, "logprobs": []}
            head = _encode(event | {"item_id": place[0], "output_index": place[1]})
            self._text_frame = b"event: response.output_text.delta\ndata: " + head[:-1]
        number = self._sequence_number
        self._sequence_number += 1
        token_ids = b""
        if self._is_resumable:
            token_ids = b',"token_ids":' + _encode(self._uncovered)
            self._uncovered = []
        return b'%b,"delta":%b,"sequence_number":%d%b}\n\n' % (
            self._text_frame,
            _encode(text),
            number,
            token_ids,
        )

    def _encoded(self, events: Iterable[Event]) -> bytes:
        return b"".join(map(self._encoded_event, events))

    def _encoded_event(self, event: Event) -> bytes:
        numbered = event | {"sequence_number": self._sequence_number}
        self._sequence_number += 1
        return b"event: %b\ndata: %b\n\n" % (event["type"].encode(), _encode(numbered))


def _first_number(resumption: Resumption | None) -> int:
    """The number of the next event of a response, if it has no output yet."""
    if resumption is None:
        return 0
    return NUM_OPENING if resumption.sequence_number is None else resumption.sequence_number + 1


def _settings(request: ResponsesRequest, plan: Plan) -> dict[str, Any]:
    """The settings of the request that its response repeats, as they were applied."""
    reasoning, text = request.reasoning, request.text
    text_format = {"type": "text"}
    if text is not None and text.format is not None:
        text_format = text.format.model_dump(by_alias=True, exclude_none=True)
    choice = request.tool_choice
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "model": plan.model,
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "flex" if request.service_tier == "flex" else "default",
        "store": False,
        "temperature": plan.sampling.temperature,
        "text": {"format": text_format, "verbosity": (text and text.verbosity) or "medium"},
        "tool_choice": (choice.model_dump() if isinstance(choice, Body) else choice or "auto"),
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": tool.strict,
            }
            for tool in request.tools
        ],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": plan.sampling.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    """The token counts under the names of this endpoint."""
    of_prompt = usage.get("prompt_tokens_details") or {}
    of_output = usage.get("completion_tokens_details") or {}
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {
            "cached_tokens": of_prompt.get("cached_tokens") or 0,
            "cache_write_tokens": 0,
        },
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": of_output.get("reasoning_tokens") or 0},
        "total_tokens": usage["total_tokens"],
    }
