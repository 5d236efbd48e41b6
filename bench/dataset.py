"""Own datasets: JSONL files whose lines are requests of a batch, plain prompts or conversations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.call import CHAT, COMPLETIONS, ENDPOINTS, Call, Endpoint, prompt_fields
from simulator.workloads.request import WorkloadError

DATASET_HELP = """\
datasets (--dataset-path), one JSON object per line:
  {"custom_id": ..., "method": "POST", "url": "/v1/chat/completions", "body": {...}}
                  a request of OpenAI's Batch API: its body is sent as it is
  {"prompt": "...", "max_tokens": 100}
                  a text, or token ids, for --endpoint; further fields are sent with it
  {"messages": [...], "max_tokens": 100}
                  a conversation, always for /v1/chat/completions
  Each line may have an arrival_s (seconds from the start; then all lines need one), and an answer
  (the right one: the report counts how many answers equal it).
"""

MOST_SECONDS = 1e8
# Fields of the Batch API beside url and body, and those that are not sent.
_ENVELOPE = ("custom_id", "method", "url", "body")
_OWN = ("arrival_s", "answer", "stream", "stream_options")


@dataclass(frozen=True, slots=True)
class LineDefaults:
    """What lines do not say themselves; `overrides` replace what they say."""

    endpoint: Endpoint = COMPLETIONS
    max_tokens: int = 256
    overrides: Mapping[str, Any] | None = None


def read_dataset(path: Path, defaults: LineDefaults) -> list[Call]:
    """The calls of a file, in order of arrival.

    Raises `WorkloadError`, which contains the number of an invalid line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise WorkloadError(f"cannot read {path}: {error.strerror}") from error
    calls = [
        _call(line, defaults, f"{path}, line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not calls:
        raise WorkloadError(f"{path} contains no requests")
    return _in_order(calls, path)


def _in_order(calls: Sequence[Call], path: Path) -> list[Call]:
    if len({call.arrival_s is None for call in calls}) > 1:
        raise WorkloadError(f"{path}: arrival_s must be in all lines or in none")
    return sorted(calls, key=lambda call: call.arrival_s or 0.0)


def _call(text: bytes, defaults: LineDefaults, place: str) -> Call:
    try:
        line = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{place}: {error}") from error
    endpoint, fields = _of_batch(line, place) if "body" in line else _plain(line, defaults, place)
    fields |= defaults.overrides or {}
    sent = {name: value for name, value in fields.items() if name not in _OWN}
    return Call(endpoint, sent, _arrival(line, place), _answer(line, place))


def _of_batch(line: dict[str, Any], place: str) -> tuple[Endpoint, dict[str, Any]]:
    url, body = line.get("url"), line["body"]
    if url not in ENDPOINTS:
        raise WorkloadError(f"{place}: url must be one of {', '.join(ENDPOINTS)}, not {url!r}")
    if not isinstance(body, dict):
        raise WorkloadError(f"{place}: body must be an object")
    unknown = [name for name in line if name not in (*_ENVELOPE, "arrival_s", "answer")]
    if unknown:
        raise WorkloadError(f"{place}: {unknown[0]!r} is not a field of a batch's line")
    return url, dict(body)


def _plain(
    line: dict[str, Any], defaults: LineDefaults, place: str
) -> tuple[Endpoint, dict[str, Any]]:
    fields = dict(line)
    if "output_tokens" in fields:  # vLLM's name in such files
        fields.setdefault("max_tokens", fields.pop("output_tokens"))
    if "max_completion_tokens" not in fields:
        fields.setdefault("max_tokens", defaults.max_tokens)
    if "messages" in fields:
        return CHAT, fields
    prompts = [fields.pop(name, None) for name in ("prompt", "prompt_token_ids")]
    given = [prompt for prompt in prompts if prompt]
    if len(given) != 1:
        raise WorkloadError(f"{place}: give a prompt, messages, or a body with its url")
    try:
        return defaults.endpoint, fields | prompt_fields(defaults.endpoint, given[0])
    except ValueError as error:
        raise WorkloadError(f"{place}: {error}") from error


def _arrival(line: dict[str, Any], place: str) -> float | None:
    value = line.get("arrival_s")
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0 <= value <= MOST_SECONDS:
        raise WorkloadError(f"{place}: arrival_s must be a number from 0 to {MOST_SECONDS:g}")
    return float(value)


def _answer(line: dict[str, Any], place: str) -> str | None:
    value = line.get("answer")
    if value is not None and not isinstance(value, str):
        raise WorkloadError(f"{place}: answer must be a text")
    return value
