"""The output of a response: its items, and the events that tell how they grow.

Reasoning, messages and calls are items of their own, one after the other: an item ends when another
one begins. Reference: https://platform.openai.com/docs/api-reference/responses-streaming.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec

from server.chat.message_parser import MessageDelta
from server.chat.tool_calls import CallDelta

Event = dict[str, Any]
Logprobs = list[msgspec.Raw]

_PREFIXES = {"reasoning_text": "rs", "output_text": "msg"}


@dataclass(slots=True)
class _Text:
    """A reasoning or a message; `kind` is the type of its one part."""

    kind: str
    item_id: str
    texts: list[str] = field(default_factory=list)
    logprobs: Logprobs = field(default_factory=list)

    @property
    def is_message(self) -> bool:
        """Whether this is a message and no reasoning."""
        return self.kind == "output_text"

    def begin(self) -> Iterator[Event]:
        part = self._part("", [])
        yield {"type": "response.content_part.added", "content_index": 0, "part": part}

    def push(self, text: str, logprobs: Logprobs) -> Iterator[Event]:
        self.texts.append(text)
        self.logprobs += logprobs
        event = {"type": f"response.{self.kind}.delta", "content_index": 0, "delta": text}
        yield event | ({"logprobs": logprobs} if self.is_message else {})

    def end(self) -> Iterator[Event]:
        text = "".join(self.texts)
        event = {"type": f"response.{self.kind}.done", "content_index": 0, "text": text}
        yield event | ({"logprobs": self.logprobs} if self.is_message else {})
        part = self._part(text, self.logprobs)
        yield {"type": "response.content_part.done", "content_index": 0, "part": part}

    def item(self, status: str) -> dict[str, Any]:
        begun = status != "in_progress"
        content = [self._part("".join(self.texts), self.logprobs)] if begun else []
        head = {"id": self.item_id, "status": status, "content": content}
        if self.is_message:
            return {"type": "message", "role": "assistant"} | head
        return {"type": "reasoning", "summary": [], "encrypted_content": None} | head

    def _part(self, text: str, logprobs: Logprobs) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self.kind, "text": text}
        return part | ({"annotations": [], "logprobs": logprobs} if self.is_message else {})


@dataclass(slots=True)
class _Call:
    """A function call."""

    call_index: int
    name: str
    item_id: str
    call_id: str
    arguments: list[str] = field(default_factory=list)

    def begin(self) -> Iterator[Event]:
        yield from ()

    def push(self, arguments: str) -> Iterator[Event]:
        self.arguments.append(arguments)
        yield {"type": "response.function_call_arguments.delta", "delta": arguments}

    def end(self) -> Iterator[Event]:
        event = {"type": "response.function_call_arguments.done", "name": self.name}
        yield event | {"arguments": "".join(self.arguments)}

    def item(self, status: str) -> dict[str, Any]:
        return {
            "type": "function_call",
            "id": self.item_id,
            "status": status,
            "call_id": self.call_id,
            "name": self.name,
            "arguments": "".join(self.arguments),
        }


class ResponseOutput:
    """The items so far; each method returns the events about what has changed.

    The ids of items follow from that of the response, so that a resumed one has the same.
    """

    def __init__(self, response_id: str) -> None:
        self._response_id = response_id
        self.items: list[dict[str, Any]] = []  # those that have ended
        self._open: _Text | _Call | None = None

    def push(self, delta: MessageDelta, logprobs: Logprobs) -> Iterator[Event]:
        """Add the new parts of the message; `logprobs` are those of the content's tokens."""
        if delta.reasoning:
            yield from self._push_text("reasoning_text", delta.reasoning, [])
        if delta.content:
            yield from self._push_text("output_text", delta.content, logprobs)
        for call in delta.calls:
            yield from self._push_call(call)

    def grow(self, content: str) -> tuple[str, int] | None:
        """Add content to the open message, and return the message's id and index.

        Returns None, and adds nothing, if no message is open.
        """
        item = self._open
        if not isinstance(item, _Text) or not item.is_message:
            return None
        item.texts.append(content)
        return item.item_id, len(self.items)

    def finish(self, status: str) -> Iterator[Event]:
        """End the last item with this status. An answer without any item has an empty message."""
        if self._open is None and not self.items:
            yield from self._begin(self._new_text("output_text"))
        yield from self._end(status)

    def _push_text(self, kind: str, text: str, logprobs: Logprobs) -> Iterator[Event]:
        item = self._open
        if not isinstance(item, _Text) or item.kind != kind:
            item = self._new_text(kind)
            yield from self._begin(item)
        yield from self._placed(item, item.push(text, logprobs))

    def _push_call(self, part: CallDelta) -> Iterator[Event]:
        item = self._open
        if not isinstance(item, _Call) or item.call_index != part.call_index:
            assert part.name is not None, "a call begins with its name"
            item_id, call_id = self._new_id("fc"), self._new_id("call")
            item = _Call(part.call_index, part.name, item_id, call_id)
            yield from self._begin(item)
        if part.arguments:
            yield from self._placed(item, item.push(part.arguments))

    def _begin(self, item: _Text | _Call) -> Iterator[Event]:
        yield from self._end("completed")
        self._open = item
        yield self._item_event("added", item.item("in_progress"))
        yield from self._placed(item, item.begin())

    def _end(self, status: str) -> Iterator[Event]:
        item, self._open = self._open, None
        if item is None:
            return
        yield from self._placed(item, item.end())
        ended = item.item(status)
        yield self._item_event("done", ended)
        self.items.append(ended)

    def _item_event(self, change: str, item: dict[str, Any]) -> Event:
        output_index = len(self.items)
        return {
            "type": f"response.output_item.{change}",
            "output_index": output_index,
            "item": item,
        }

    def _placed(self, item: _Text | _Call, events: Iterator[Event]) -> Iterator[Event]:
        """Say which item the events are about."""
        for event in events:
            yield event | {"item_id": item.item_id, "output_index": len(self.items)}

    def _new_text(self, kind: str) -> _Text:
        return _Text(kind, self._new_id(_PREFIXES[kind]))

    def _new_id(self, prefix: str) -> str:
        """The id of the next item, or of its call."""
        number = len(self.items) + (self._open is not None)
        named = f"{self._response_id} {prefix} {number}".encode()
        return f"{prefix}_{blake2b(named, digest_size=12).hexdigest()}"
