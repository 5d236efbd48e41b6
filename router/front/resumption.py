"""Resumption: what a stream has sent so far, as the request with which another daemon continues it.

The events are looked at only here, when their instance is lost. Each tells which tokens it covers
(`token_ids`), because the router has asked for that (`x-tdpipe-resumable`).
"""

from collections.abc import Iterator
from typing import Any

import msgspec

FIELD = "tdpipe_resume"
ASKING = (b"x-tdpipe-resumable", b"1")
_CLOSING = frozenset({"response.completed", "response.incomplete", "response.failed"})
_decode = msgspec.json.Decoder().decode


class ResumptionError(Exception):
    """The answer cannot be continued; the message tells why."""


class Choice(msgspec.Struct):
    """The tokens of one choice that the client has."""

    index: int
    token_ids: list[int] = []
    finished: bool = False


class Progress(msgspec.Struct):
    """What a client has of a streamed answer; without an `id` it has nothing of it."""

    id: str = ""
    created: int = 0
    choices: list[Choice] = []
    sequence_number: int | msgspec.UnsetType = msgspec.UNSET
    """Of the last event of a response."""

    @property
    def num_done(self) -> int:
        """The tokens of all choices."""
        return sum(len(choice.token_ids) for choice in self.choices)


def read_progress(events: bytes) -> tuple[Progress, bool]:
    """Read the events that a client has; returns the progress, and whether the answer is complete.

    Raises `ResumptionError` if they do not tell which tokens they cover.
    """
    if events and not events.endswith(b"\n\n"):
        raise ResumptionError("an event was cut")
    progress, choices, is_complete = Progress(), dict[int, Choice](), False
    with_text: set[int] = set()
    for data in _data_of(events):
        if data == b"[DONE]":
            is_complete = True
            continue
        try:
            event = _decode(data)
            is_complete |= _read_event(event, progress, choices, with_text)
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
            raise ResumptionError("an event could not be read") from error
    if any(not choices[index].token_ids for index in with_text):
        raise ResumptionError("its instance does not tell which tokens an event covers")
    progress.choices = [choices[index] for index in sorted(choices)]
    return progress, is_complete


def resuming_body(body: bytes, progress: Progress) -> bytes:
    """The request that continues an answer: the original one with one more field."""
    rest = body.lstrip()[1:]
    comma = b"" if rest.lstrip().startswith(b"}") else b","
    return b'{"%b":%b%b%b' % (FIELD.encode(), msgspec.json.encode(progress), comma, rest)


def _data_of(events: bytes) -> Iterator[bytes]:
    for event in events.split(b"\n\n"):
        for line in event.split(b"\n"):
            if line.startswith(b"data: "):
                yield line[6:]


def _read_event(
    event: Any, progress: Progress, choices: dict[int, Choice], with_text: set[int]
) -> bool:
    """Read one event; return whether it ends the answer. `with_text` gets choices with text."""
    if "sequence_number" in event:
        return _read_response_event(event, progress, choices, with_text)
    progress.id, progress.created = event["id"], event["created"]
    for told in event["choices"]:
        choice = choices.setdefault(told["index"], Choice(told["index"]))
        choice.token_ids += told.get("token_ids") or []
        choice.finished |= told.get("finish_reason") is not None
        if told.get("text") or _has_content(told.get("delta")):
            with_text.add(choice.index)
    return False


def _read_response_event(
    event: Any, progress: Progress, choices: dict[int, Choice], with_text: set[int]
) -> bool:
    if event["type"] == "response.created":
        progress.id = event["response"]["id"]
        progress.created = int(event["response"]["created_at"])
    progress.sequence_number = event["sequence_number"]
    choice = choices.setdefault(0, Choice(0))
    choice.token_ids += event.get("token_ids") or []
    if event.get("delta"):
        with_text.add(0)
    return event["type"] in _CLOSING


def _has_content(delta: Any) -> bool:
    return bool(delta) and any(value for key, value in delta.items() if key != "role")
