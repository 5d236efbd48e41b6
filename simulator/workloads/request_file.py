"""Workload files: JSONL, one request per line."""

from pathlib import Path

import msgspec

from simulator.workloads.request import Request, WorkloadError

# Plausible figures of one request: longer than any context, and three years.
MOST_TOKENS, MOST_SECONDS = 10**8, 1e8


class RequestLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line: one of the two prompts; `arrival_s` is in all lines or in none."""

    max_tokens: int
    prompt: str | None = None
    prompt_token_ids: tuple[int, ...] | None = None
    ignore_eos: bool = False
    answer: str | None = None
    arrival_s: float | None = None
    expected_tokens: int | None = None


def read_requests(path: Path) -> list[Request]:
    """The requests of a file in order of arrival.

    Raises `WorkloadError`, which contains the number of an invalid line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror}") from error
    requests = [
        _parse(line, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not requests:
        raise WorkloadError(f"{path} contains no requests")
    if len({request.arrival_s is None for request in requests}) > 1:
        raise WorkloadError(f"{path}: arrival_s must be in all lines or in none")
    return sorted(requests, key=lambda request: request.arrival_s or 0.0)


def to_line(request: Request) -> str:
    """The request as a line, without the newline."""
    prompt = request.prompt
    line = RequestLine(
        max_tokens=request.max_tokens,
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=None if isinstance(prompt, str) else prompt,
        ignore_eos=request.ignore_eos,
        answer=request.answer,
        arrival_s=request.arrival_s,
        expected_tokens=request.expected_tokens,
    )
    return msgspec.json.encode(line).decode()


def _parse(text: bytes, place: str) -> Request:
    try:
        line = msgspec.json.decode(text, type=RequestLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{place}: {error}") from error
    prompts = [prompt for prompt in (line.prompt, line.prompt_token_ids) if prompt]
    if len(prompts) != 1:
        raise WorkloadError(f"{place}: give either prompt or prompt_token_ids, not empty")
    if not 1 <= line.max_tokens <= MOST_TOKENS:
        raise WorkloadError(f"{place}: max_tokens must be at least 1 and at most {MOST_TOKENS:g}")
    if line.arrival_s is not None and not 0 <= line.arrival_s <= MOST_SECONDS:
        raise WorkloadError(
            f"{place}: arrival_s must not be negative, and at most {MOST_SECONDS:g}: it counts "
            "from the start of the run"
        )
    if line.expected_tokens is not None and not 1 <= line.expected_tokens <= MOST_TOKENS:
        raise WorkloadError(
            f"{place}: expected_tokens must be at least 1 and at most {MOST_TOKENS:g}"
        )
    return Request(
        prompts[0],
        line.max_tokens,
        line.ignore_eos,
        line.answer,
        line.arrival_s,
        line.expected_tokens,
    )
