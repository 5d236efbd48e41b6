"""The record of one request: when it was sent, when each piece arrived, and how it ended.

All times are seconds on the run's clock and are passed as arguments.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

_SHOWN_BODY_CHARACTERS = 200


class _Choice(msgspec.Struct):
    text: str = ""
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Error(msgspec.Struct):
    message: str = "an error without a message"


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None


_decode = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class Record:
    """The lifecycle of one request; `error` is None exactly if a whole answer has arrived.

    A piece is an event with a choice: usually one token, more if a token completes no character.
    """

    arrival_s: float
    sent_s: float | None = None
    piece_s: list[float] = field(default_factory=list)
    ended_s: float | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    texts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = "not sent"
    _rest: bytes = b""
    _is_done: bool = False

    def send(self, now: float) -> None:
        """Note that the request is sent now."""
        self.sent_s = now
        self.error = "no whole answer"

    def feed(self, status: int, data: bytes, now: float) -> None:
        """Take a part of the body of an answer of this HTTP status."""
        if status != 200:
            self._rest += data
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._take(line[5:].strip(), now)

    def end(self, status: int, now: float) -> None:
        """Note that the body of the answer is complete."""
        self.ended_s = now
        if status != 200:
            self.error = f"HTTP {status}: {_message(self._rest)}"
        elif self._is_done and self.error == "no whole answer":
            self.error = None if self.num_output_tokens else "no usage in the stream"
        self._rest = b""

    def fail(self, error: str, now: float) -> None:
        """Note that the answer, or the rest of it, will not arrive."""
        self.ended_s = now
        self.error = error
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
        times = self.piece_s
        return [later - earlier for earlier, later in pairwise(times)]

    @property
    def e2e_s(self) -> float | None:
        """From the sending to the end of the answer."""
        if self.sent_s is None or self.ended_s is None:
            return None
        return self.ended_s - self.sent_s

    def _take(self, event: bytes, now: float) -> None:
        if event == b"[DONE]":
            self._is_done = True
            return
        try:
            decoded = _decode(event)
        except msgspec.DecodeError as error:
            self.error = f"not an event of a completion: {error}"
            return
        if decoded.error is not None:
            self.error = decoded.error.message
        if decoded.usage is not None:
            self.num_prompt_tokens = decoded.usage.prompt_tokens
            self.num_output_tokens = decoded.usage.completion_tokens
        for choice in decoded.choices:
            self.piece_s.append(now)
            self.texts.append(choice.text)
            self.finish_reason = choice.finish_reason


def _message(body: bytes) -> str:
    """The text of an error's body: OpenAI's envelope, or else its beginning."""
    try:
        decoded = _decode(body)
    except msgspec.DecodeError:
        return body.decode(errors="replace")[:_SHOWN_BODY_CHARACTERS]
    return decoded.error.message if decoded.error else "no message"
