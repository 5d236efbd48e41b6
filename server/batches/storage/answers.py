"""The answers: lines of an append-only file, which also serves as the journal of the batch.

A request is answered once its complete line is in the file. A process that is killed leaves at most
one incomplete line at the end, which is removed when the file is opened again; requests without a
line are then run again. So each custom_id is answered once, and no second record has to be kept
consistent with the file.

Reference: https://platform.openai.com/docs/guides/batch#5-retrieve-the-results.
"""

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import msgspec

from server.batches.storage.custom_ids import CustomIds
from server.batches.storage.lifecycle import new_id
from server.batches.storage.lines import LINES_AT_A_TIME
from server.openai.fields.batch import (
    BatchUsage,
    InputTokensDetails,
    OutputTokensDetails,
    RequestCounts,
)

OK = 200
_BEGINNING = b'{"id":"batch_req_'


class DamagedAnswersError(Exception):
    """A file contains something other than answers; the message is one line for the user."""


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = 0


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int | None = 0


class _AnswerUsage(msgspec.Struct):
    """Token counts, under the names of completions and chats, or under those of responses."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _OutputDetails | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _PromptDetails | None = None
    output_tokens_details: _OutputDetails | None = None


class _AnswerBody(msgspec.Struct):
    usage: _AnswerUsage | None = None


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: _AnswerBody


class _AnswerLine(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None


_decode_line = msgspec.json.Decoder(_AnswerLine).decode
_decode_body = msgspec.json.Decoder(_AnswerBody).decode
_encode = msgspec.json.Encoder().encode


class LineAnswer(NamedTuple):
    """The line of one request, and the values that are counted."""

    custom_id: str
    line: bytes
    is_success: bool
    usage: _AnswerUsage | None


def answered(custom_id: str, status: int, request_id: str, body: bytes) -> LineAnswer:
    """Return the answer of a request that was run; `body` is the JSON of its response."""
    if b"\n" in body:
        body = msgspec.json.format(body, indent=-1)
    response = {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
    usage = _decode_body(body).usage if status == OK else None
    return LineAnswer(custom_id, _line(custom_id, response, None), status == OK, usage)


def not_run(custom_id: str, code: str, message: str) -> LineAnswer:
    """Return the answer of a request that was not run."""
    error = {"code": code, "message": message}
    return LineAnswer(custom_id, _line(custom_id, None, error), is_success=False, usage=None)


class Answers:
    """The answers of one batch so far: successes in `output`, the rest in `errors`.

    Both may be the same file. All methods block, and only one thread at a time may call them.
    """

    def __init__(self, output: Path, errors: Path) -> None:
        """Open or create the files, and remove incomplete last lines.

        Raises `OSError`.
        """
        self.custom_ids = CustomIds()
        self._num_successes = 0
        self._usage = [0, 0, 0, 0]  # input, cached, output, reasoning
        with ExitStack() as opened:
            self._output = self._errors = opened.enter_context(closing(_JsonLines(output)))
            if errors != output:
                self._errors = opened.enter_context(closing(_JsonLines(errors)))
            for file in self._files():
                for answer in file.recover():
                    self._count(answer)
            opened.pop_all()

    def counts(self, total: int) -> RequestCounts:
        """Return the numbers of successes and failures, and `total`."""
        failed = len(self.custom_ids) - self._num_successes
        return RequestCounts(total=total, completed=self._num_successes, failed=failed)

    def usage(self) -> BatchUsage:
        """Return the token counts of all successes."""
        input_tokens, cached_tokens, output_tokens, reasoning_tokens = self._usage
        return BatchUsage(
            input_tokens=input_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=cached_tokens),
            output_tokens=output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning_tokens),
            total_tokens=input_tokens + output_tokens,
        )

    def append(self, answers: Iterable[LineAnswer]) -> None:
        """Write lines, which survive this process. Raises `OSError`, leaving no partial line."""
        for file in self._files():
            chosen = [a for a in answers if self._file_of(a) is file]
            file.append(b"".join(answer.line for answer in chosen))
            for answer in chosen:
                self._count(answer)

    def sync(self) -> None:
        """Sync to disk, so that the lines survive a power failure. Raises `OSError`."""
        for file in self._files():
            file.sync()

    def sizes(self) -> tuple[int, int]:
        """Return the sizes of the output and error files, in bytes."""
        return self._output.num_bytes, self._errors.num_bytes

    def close(self) -> None:
        """Close the files."""
        for file in self._files():
            file.close()

    def _files(self) -> "list[_JsonLines]":
        return list(dict.fromkeys((self._output, self._errors)))

    def _file_of(self, answer: LineAnswer) -> "_JsonLines":
        return self._output if answer.is_success else self._errors

    def _count(self, answer: LineAnswer) -> None:
        self.custom_ids.add(answer.custom_id)
        self._num_successes += answer.is_success
        if answer.usage is not None:
            usage = answer.usage
            of_prompt = usage.prompt_tokens_details or usage.input_tokens_details
            of_output = usage.completion_tokens_details or usage.output_tokens_details
            self._usage[0] += usage.prompt_tokens or usage.input_tokens
            self._usage[1] += (of_prompt and of_prompt.cached_tokens) or 0
            self._usage[2] += usage.completion_tokens or usage.output_tokens
            self._usage[3] += (of_output and of_output.reasoning_tokens) or 0


def check_is_answers(path: Path) -> None:
    """Raise `DamagedAnswersError` if a file has lines other than answers and an incomplete one.

    This is for a file named by the user: opening it as `Answers` removes an incomplete last line,
    and must not remove anything else.
    """
    with path.open("rb") as file:
        if not _begins_as_answer(file.read(len(_BEGINNING))):
            raise DamagedAnswersError(f"{path} exists and does not hold answers")
        file.seek(0)
        for number, line in enumerate(file, 1):
            is_torn = not line.endswith(b"\n")
            if not _begins_as_answer(line) or not (is_torn or _parse(line)):
                raise DamagedAnswersError(f"{path}, line {number}: this is not an answer")


class _JsonLines:
    """A file to which whole lines are appended."""

    def __init__(self, path: Path) -> None:
        self.num_bytes = 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._path = path

    def recover(self) -> Iterator[LineAnswer]:
        """Yield the answers before the first incomplete line, and remove the rest of the file."""
        with self._path.open("rb") as file:
            for number, line in enumerate(file):
                answer = _parse(line)
                if answer is None:
                    break
                self.num_bytes += len(line)
                yield answer
                if number % LINES_AT_A_TIME == 0:
                    time.sleep(0)
        os.ftruncate(self._file, self.num_bytes)

    def append(self, lines: bytes) -> None:
        view = memoryview(lines)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, self.num_bytes)
            raise
        self.num_bytes += len(lines)

    def sync(self) -> None:
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def _line(custom_id: str, response: object, error: object) -> bytes:
    line = {"id": new_id("batch_req_"), "custom_id": custom_id}
    return _encode(line | {"response": response, "error": error}) + b"\n"


def _begins_as_answer(line: bytes) -> bool:
    return line.startswith(_BEGINNING) or _BEGINNING.startswith(line)


def _parse(line: bytes) -> LineAnswer | None:
    """Return the answer without the bytes of its line; None if the line is incomplete."""
    if not line.endswith(b"\n"):
        return None
    try:
        parsed = _decode_line(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    response = parsed.response
    is_success = response is not None and response.status_code == OK
    usage = response.body.usage if response is not None else None
    return LineAnswer(parsed.custom_id, b"", is_success, usage)
