"""The lines of an input file: one request each, all checked before any of them runs.

    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": ..., ...}}

Reference: https://platform.openai.com/docs/guides/batch#1-prepare-your-batch-file.
"""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

MAX_CUSTOM_ID_CHARACTERS = 512
# A thread that reads a large file releases the GIL after this many lines.
LINES_AT_A_TIME = 64
ANY_LENGTH = 2**31 - 1
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class BadLineError(ValueError):
    """A line is not a request that this server can run; the message is for the client."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


class LineRequest(NamedTuple):
    """One request: the path of its endpoint, and its body as the client wrote it."""

    custom_id: str
    url: str
    body: bytes


@dataclass(frozen=True)
class Rules:
    """The requests that lines may contain."""

    urls: Collection[str]
    models: Collection[str]
    max_line_bytes: int


class _RawLine(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str | UnsetType = UNSET
    method: str | UnsetType = UNSET
    url: str | UnsetType = UNSET
    body: msgspec.Raw | UnsetType = UNSET


class _RequestBody(msgspec.Struct):
    model: str | UnsetType = UNSET
    stream: bool | None = None


class _Lengths(msgspec.Struct):
    """The fields that limit a length, undecoded because the values are not validated yet."""

    expected_tokens: msgspec.Raw = msgspec.Raw()
    max_completion_tokens: msgspec.Raw = msgspec.Raw()
    max_output_tokens: msgspec.Raw = msgspec.Raw()
    max_tokens: msgspec.Raw = msgspec.Raw()


Value = TypeVar("Value", str, msgspec.Raw)

_decode_line = msgspec.json.Decoder(_RawLine).decode
_decode_body = msgspec.json.Decoder(_RequestBody).decode
_decode_lengths = msgspec.json.Decoder(_Lengths).decode


def read_lines(file: BinaryIO, max_line_bytes: int = 2**40) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that are not blank, with their numbers, counted from 1.

    A line that is too long is truncated to one byte more than the limit.
    """
    number = 0
    while line := file.readline(max_line_bytes + 1):
        number += 1
        part = line
        while not part.endswith(b"\n") and len(part) > max_line_bytes:
            part = file.readline(max_line_bytes + 1)
        if number == 1:
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line.isspace() and line:
            yield number, line
        if number % LINES_AT_A_TIME == 0:
            time.sleep(0)


def parse_line(line: bytes) -> LineRequest:
    """Return the request in a line. Raises `BadLineError`."""
    try:
        given = _decode_line(line)
    except msgspec.ValidationError as error:
        raise BadLineError("invalid_request", f"This line is not a request: {error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        message = f"This line is not parseable as valid JSON: {error}."
        raise BadLineError("invalid_json_line", message) from error
    custom_id = _required(given.custom_id, "custom_id")
    if not 0 < len(custom_id) <= MAX_CUSTOM_ID_CHARACTERS:
        message = f"'custom_id' must have 1 to {MAX_CUSTOM_ID_CHARACTERS} characters."
        raise BadLineError("invalid_custom_id", message, "custom_id")
    if _required(given.method, "method") != "POST":
        raise BadLineError("invalid_method", "'method' must be POST.", "method")
    url, body = _required(given.url, "url"), _required(given.body, "body")
    return LineRequest(custom_id, url, bytes(body))


def longest_answer(body: bytes) -> int:
    """Return the longest answer of a checked request, in tokens, from the client's fields.

    This is the expected length if given, else the limit; without both, the length is unlimited.
    """
    given = _decode_lengths(body)
    limits = (given.max_output_tokens, given.max_completion_tokens, given.max_tokens)
    for length in (given.expected_tokens, *limits):
        digits = bytes(length)
        if digits.isdigit() and len(digits) <= len(str(ANY_LENGTH)):
            return int(digits)
    return ANY_LENGTH


def check_line(line: bytes, rules: Rules) -> LineRequest:
    """Check a line against `rules`, and return its request.

    The other fields of the body are checked when the request runs. Raises `BadLineError`.
    """
    if len(line) > rules.max_line_bytes:
        message = f"This line is too long: at most {rules.max_line_bytes} bytes are accepted."
        raise BadLineError("line_too_long", message)
    request = parse_line(line)
    if request.url not in rules.urls:
        allowed = " or ".join(sorted(rules.urls))
        message = f"The url '{request.url}' is not supported here: it must be {allowed}."
        raise BadLineError("invalid_url", message, "url")
    try:
        body = _decode_body(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadLineError("invalid_request", f"Invalid 'body': {error}.", "body") from error
    model = _required(body.model, "body.model")
    if model not in rules.models:
        message = f"The model `{model}` does not exist or you do not have access to it."
        raise BadLineError("model_not_found", message, "body.model")
    if body.stream:
        raise BadLineError("invalid_request", "A batch cannot be streamed.", "body.stream")
    return request


def _required(value: Value | UnsetType, field: str) -> Value:
    if isinstance(value, UnsetType):
        message = f"Missing required parameter: '{field}'."
        raise BadLineError("missing_required_parameter", message, field)
    return value
