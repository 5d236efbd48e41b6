"""Renders generations of /v1/chat/completions."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from server.chat.message_parser import MessageDelta, MessageParser
from server.chat.tool_calls import CallDelta
from server.http.errors import ApiError
from server.openai.fields.chat import ChatRequest
from server.openai.rendering.logprobs import chat_logprobs, prompt_logprobs
from server.openai.rendering.sse import EventFrame, failure
from server.requests.generation import Piece
from server.requests.logprobs import TokenLogprobs
from server.requests.planning.plan import Plan
from server.requests.resumption import id_and_created
from server.text.tokenizer import Tokenizer


@dataclass(slots=True)
class _CollectedMessage:
    """The message of one choice so far; for streams, only the state of the parser."""

    parser: MessageParser
    reasoning: list[str] = field(default_factory=list)
    content: list[str] = field(default_factory=list)
    calls: list[tuple[str, str, list[str]]] = field(default_factory=list)  # id, name, arguments
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    ending: dict[str, Any] = field(default_factory=dict)


# The request fields that determine the contents of an answer.
_SHOWN = (
    "include_reasoning",
    "logprob_token_ids",
    "logprobs",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "service_tier",
    "top_logprobs",
)


class ChatRendering:
    """Renders one chat completion; `parser` creates a choice's parser if there is one.

    `echo` is the beginning of the message that the prompt already contains, if the request asks to
    return it.
    """

    def __init__(
        self,
        request: ChatRequest,
        plan: Plan,
        tokenizer: Tokenizer,
        parser: Callable[[], MessageParser] | None,
        fingerprint: str,
        *,
        echo: str = "",
    ) -> None:
        self.reply_id, self._created = id_and_created(plan.resumption, "chatcmpl-")
        self._request = request.only(*_SHOWN)
        self._plan, self._tokenizer = plan, tokenizer
        self._shows_tokens = request.return_token_ids or plan.resumable
        self._shows_only_tokens = self._shows_tokens and not request.logprobs
        self._is_plain = parser is None and not plan.returns_tokens
        new_parser = parser or (lambda: MessageParser(None, None))
        self._messages = [_CollectedMessage(new_parser()) for _ in range(plan.num_sequences)]
        self._scores: list[TokenLogprobs] = []
        self._echo = echo
        self._head = self._make_head(fingerprint)
        self._begun: set[int] = set()  # choices with a role in the stream
        self._frame = EventFrame(
            self._head | {"object": "chat.completion.chunk"},
            (b'"delta":{"content":', b"}"),
            include_usage=request.include_usage,
        )

    def opening(self) -> bytes:
        """Return nothing: a choice begins with its first piece.

        Load generators take the first event for the first token.
        """
        return b""

    def chunk(self, piece: Piece) -> bytes:
        """Return the events of one piece; empty while its text may still become a tool call.

        The first event of a choice has the role and the echoed text, and the last one has only the
        finish reason, because some clients ignore the text of such an event.
        """
        index = piece.choice_index
        role = b""
        if index not in self._begun:
            role = self._role(index, piece)
            self._begun.add(index)
        if self._is_plain and piece.finish_reason is None and piece.usage is None:
            return role + self._frame.text(index, piece.text)
        message = self._messages[index]
        parsed = self._parse(message, piece)
        is_text = bool(parsed.content) and not parsed.calls and not parsed.reasoning
        is_all = is_text and piece.usage is None
        if is_all and not self._plan.returns_tokens:
            events = self._frame.text(index, parsed.content)
        elif is_all and self._shows_only_tokens:
            events = self._frame.covering_text(index, parsed.content, piece.token_ids)
        else:
            events = self._parts(piece, parsed)
        if piece.finish_reason is not None:
            ending = self._ending(message, piece)
            events += self._event({"index": index, "delta": {}} | ending, piece)
        return role + events

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
        message = self._messages[piece.choice_index]
        reasoning, content, calls = self._parse(message, piece)
        message.reasoning.append(reasoning)
        message.content.append(content)
        for part in calls:
            if part.name is not None:
                message.calls.append((part.call_id or "", part.name, []))
            message.calls[part.call_index][2].append(part.arguments)
        message.logprobs += piece.logprobs
        message.token_ids += piece.token_ids
        if piece.scores and not piece.choice_index:
            self._scores = list(piece.scores)
        message.ending = self._ending(message, piece)

    def whole(self, usage: dict[str, Any]) -> bytes:
        """Return the JSON of the collected answer."""
        body = self._head | {
            "choices": [self._choice(i, message) for i, message in enumerate(self._messages)],
            "usage": usage,
            # Clients of vLLM read these fields of whole answers without a check.
            "prompt_logprobs": None,
            "prompt_token_ids": None,
        }
        num_tops = self._request.prompt_logprobs
        if num_tops is not None:
            tokenizer = self._tokenizer
            body["prompt_logprobs"] = prompt_logprobs(
                self._plan.prompts[0],
                self._scores,
                num_tops,
                tokenizer.pieces,
                tokenizer.token_texts(skip_special_tokens=False),
            )
        if self._request.return_token_ids:
            body["prompt_token_ids"] = list(self._plan.prompts[0])
        return msgspec.json.encode(body)

    def _make_head(self, fingerprint: str) -> dict[str, Any]:
        request = self._request
        head: dict[str, Any] = {
            "id": self.reply_id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._plan.model,
            "system_fingerprint": fingerprint,
        }
        if "service_tier" in request.model_fields_set:
            head["service_tier"] = "flex" if request.service_tier == "flex" else "default"
        return head

    def _role(self, index: int, piece: Piece) -> bytes:
        """Return the first event of a choice; the very first one comes before any token counts."""
        if piece.usage is not None and not self._begun:
            num_prompt_tokens = piece.usage["prompt_tokens"]
            none = {"completion_tokens": 0, "total_tokens": num_prompt_tokens}
            piece = piece._replace(usage=piece.usage | none)
        delta = {"role": "assistant", "content": self._echo}
        prompt: dict[str, Any] = {}
        if self._request.return_token_ids and not self._begun:
            prompt = {"prompt_token_ids": list(self._plan.prompts[0])}
        return self._event({"index": index, "delta": delta}, piece, prompt)

    def _parts(self, piece: Piece, parsed: MessageDelta) -> bytes:
        """Return the event with the new parts of a message, and with new tokens if requested."""
        delta = self._delta(parsed)
        has_tokens = bool(piece.token_ids or piece.logprobs)
        if not delta and not has_tokens:
            return b""
        choice = {"index": piece.choice_index, "delta": delta or {"content": ""}}
        return self._event(choice | self._beside(piece), piece)

    def _event(
        self, choice: dict[str, Any], piece: Piece, beside: dict[str, Any] | None = None
    ) -> bytes:
        nothing = {"logprobs": None, "finish_reason": None}
        return self._frame.choice(choice | nothing | choice, beside, usage=piece.usage)

    def _parse(self, message: _CollectedMessage, piece: Piece) -> MessageDelta:
        parsed = message.parser.push(piece.text, is_last=piece.finish_reason is not None)
        return parsed if self._request.include_reasoning else parsed._replace(reasoning="")

    def _beside(self, piece: Piece) -> dict[str, Any]:
        beside: dict[str, Any] = {}
        if self._request.logprobs:
            beside["logprobs"] = self._logprobs(piece.logprobs)
        if self._shows_tokens:
            beside["token_ids"] = list(piece.token_ids)
        return beside

    def _logprobs(self, logprobs: list[TokenLogprobs] | tuple[()]) -> dict[str, Any]:
        if self._request.logprob_token_ids:  # as in vLLM; in completions it is always there
            logprobs = [position.with_sampled() for position in logprobs]
        as_ids = self._request.return_tokens_as_token_ids
        content = chat_logprobs(logprobs, self._tokenizer.pieces, as_ids=as_ids)
        return {"content": content, "refusal": None}

    def _ending(self, message: _CollectedMessage, piece: Piece) -> dict[str, Any]:
        if piece.finish_reason is None:
            return {}
        calls = message.parser.num_calls and piece.finish_reason == "stop"
        reason = "tool_calls" if calls else piece.finish_reason
        return {"finish_reason": reason, "stop_reason": piece.stop_reason}

    def _delta(self, parsed: MessageDelta) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if parsed.reasoning:
            delta["reasoning_content"] = delta["reasoning"] = parsed.reasoning
        if parsed.content:
            delta["content"] = parsed.content
        if parsed.calls:
            delta["tool_calls"] = [_call_delta(part) for part in parsed.calls]
        return delta

    def _choice(self, index: int, message: _CollectedMessage) -> dict[str, Any]:
        content, reasoning = "".join(message.content), "".join(message.reasoning)
        content = self._echo + content
        answer: dict[str, Any] = {
            "role": "assistant",
            "content": content if content or not (message.calls or reasoning) else None,
            "refusal": None,
            "annotations": [],
        }
        if reasoning:
            answer["reasoning_content"] = answer["reasoning"] = reasoning
        if message.calls:
            answer["tool_calls"] = [
                _call(call_id, name, "".join(arguments))
                for call_id, name, arguments in message.calls
            ]
        choice: dict[str, Any] = {"index": index, "message": answer}
        choice |= {"logprobs": None, "token_ids": None}
        if self._request.logprobs:
            choice["logprobs"] = self._logprobs(message.logprobs)
        if self._request.return_token_ids:
            choice["token_ids"] = message.token_ids
        return choice | message.ending


def _call_delta(part: CallDelta) -> dict[str, Any]:
    if part.name is None:
        return {"index": part.call_index, "function": {"arguments": part.arguments}}
    return {"index": part.call_index} | _call(part.call_id or "", part.name, part.arguments)


def _call(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}
