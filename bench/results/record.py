"""The record of one request: when it was sent, when each piece arrived, and how it ended.

All times are seconds on the run's clock and are passed as arguments. The events may be those of
completions or of chat, from any server with OpenAI's format.
"""

from array import array
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

_SHOWN_BODY_CHARACTERS = 200
# More of the body of an error is not kept.
_MOST_ERROR_BYTES = 1 << 16

NOT_SENT = "not sent"
CONNECTION = "connection failed"
TIMEOUT = "timeout"
INCOMPLETE = "incomplete answer"
IN_STREAM = "error in the stream"
NOT_OPENAI = "not a stream of OpenAI's format"
RUN_ENDED = "open when the run ended"
"""The kinds of errors; a refusal's kind is its status, e.g. `HTTP 429`."""


class _Delta(msgspec.Struct):
    """What a chunk of a chat adds; servers name the reasoning in two ways."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None

    @property
    def has_output(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls)


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def content(self) -> str:
        """The text of the answer."""
        return self.text or (self.delta.content if self.delta else None) or ""

    @property
    def has_output(self) -> bool:
        return bool(self.text or (self.delta and self.delta.has_output))

    @property
    def is_piece(self) -> bool:
        """Whether it has a token: a chat's first chunk has the role only."""
        return self.text is not None or self.finish_reason is not None or self.has_output


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Error(msgspec.Struct):
    message: str = "an error without a message"


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None

    @property
    def error_message(self) -> str | None:
        """OpenAI's errors are objects; some servers send only a text."""
        return self.error.message if isinstance(self.error, _Error) else self.error


_decode = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class Record:
    """The lifecycle of one request; `error` is None exactly if a whole answer has arrived.

    A piece is an event with output: usually one token, more if a token completes no character or
    the server collects them. Without a usage in the stream, pieces with text are taken for tokens.
    """

    arrival_s: float
    sent_s: float | None = None
    piece_s: "array[float]" = field(default_factory=lambda: array("d"))
    ended_s: float | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    has_usage: bool = False
    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = NOT_SENT
    error_kind: str | None = NOT_SENT
    _rest: bytes = b""
    _num_events: int = 0
    _num_outputs: int = 0
    _is_done: bool = False

    def send(self, now: float) -> None:
        """Note that the request is sent now."""
        self.sent_s = now
        self.error, self.error_kind = "no whole answer", INCOMPLETE

    def feed(self, status: int, data: bytes, now: float) -> None:
        """Take a part of the body of an answer of this HTTP status."""
        if status != 200:
            self._rest = (self._rest + data)[:_MOST_ERROR_BYTES]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now)

    def end(self, status: int, now: float) -> None:
        """Note that the body of the answer is complete."""
        self.ended_s = now
        if status != 200:
            self._set_error(f"HTTP {status}", f"HTTP {status}: {_message(self._rest)}")
        elif self.error_kind == INCOMPLETE:
            self._end_stream()
        self._rest = b""

    def fail(self, kind: str, error: str, now: float) -> None:
        """Note that the answer, or the rest of it, will not arrive."""
        self.ended_s = now
        self._set_error(kind, error)
        self._rest = b""

    @property
    def text(self) -> str:
        """The answer as it was streamed."""
        return "".join(self.texts)

    @property
    def ttft_s(self) -> float | None:
        """Time to first token: from the sending, including the connection, to the first piece."""
        if self.sent_s is None or not self.piece_s:
            return None
        return self.piece_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None if one piece contained all of them."""
        if len(self.piece_s) < 2 or self.num_output_tokens < 2:
            return None
        return (self.piece_s[-1] - self.piece_s[0]) / (self.num_output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        """Inter-token latencies: the gaps between the pieces."""
        return [later - earlier for earlier, later in pairwise(self.piece_s)]

    @property
    def e2e_s(self) -> float | None:
        """From the sending to the end of the answer."""
        if self.sent_s is None or self.ended_s is None:
            return None
        return self.ended_s - self.sent_s

    def _take(self, event: bytes, now: float) -> None:
        self._num_events += 1
        if event == b"[DONE]":
            self._is_done = True
            return
        try:
            decoded = _decode(event)
        except msgspec.DecodeError as error:
            self._set_error(NOT_OPENAI, f"not an event of a completion: {error}")
            return
        if decoded.error_message is not None:
            self._set_error(IN_STREAM, decoded.error_message)
        if decoded.usage is not None:
            self.has_usage = True
            self.num_prompt_tokens = decoded.usage.prompt_tokens
            self.num_output_tokens = decoded.usage.completion_tokens
        for choice in decoded.choices:
            if choice.is_piece:
                self._take_piece(choice, now)

    def _take_piece(self, choice: _Choice, now: float) -> None:
        self.piece_s.append(now)
        self._num_outputs += choice.has_output
        self.texts.append(choice.content)
        self.finish_reason = choice.finish_reason or self.finish_reason

    def _end_stream(self) -> None:
        """The body is complete, but the answer is only if the stream has said so."""
        if self._is_done or self.finish_reason is not None:
            self.error = self.error_kind = None
            if not self.has_usage:
                self.num_output_tokens = self._num_outputs
        elif not self._num_events:
            self._set_error(NOT_OPENAI, f"no event in the answer: {_message(self._rest)}")

    def _set_error(self, kind: str, error: str) -> None:
        self.error_kind, self.error = kind, error


def _message(body: bytes) -> str:
    """The text of an error's body in one line: OpenAI's envelope, or else its beginning."""
    try:
        message = _decode(body).error_message or "no message"
    except msgspec.DecodeError:
        message = body.decode(errors="replace")[:_SHOWN_BODY_CHARACTERS]
    return " ".join(message.split())
