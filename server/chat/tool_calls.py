"""Tool calls: separates the calls that a model writes from the message's content.

The result does not depend on how the text was split into pieces: the concatenated deltas equal the
result of parsing the whole text at once. The content is the text without the calls and, if there
were calls, without the white space at its end. Text that turns out not to be a call is content,
unless it is an incomplete call at the text's end after other calls.
"""

import secrets
import string
from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from server.chat.call_formats import CallFormat, CallReader
from server.chat.markers import find_marker
from server.grammar.grammar_text import Schema

_ID_CHARACTERS = string.ascii_letters + string.digits


class CallDelta(NamedTuple):
    """A part of one call: the first part has `name` and `call_id`, later ones more arguments."""

    call_index: int
    name: str | None
    arguments: str
    call_id: str | None = None


class CallParser:
    """Splits a growing text into the content and the calls of one message.

    `schemas` are those of the available tools by name: a bare object is a call only if it names one
    of them. Without `several`, calls after the first are dropped. With `only_calls`, the text
    consists of calls, and an incomplete call at its end is not content. With `only_whole`, a call
    is returned when it is complete; otherwise, it is returned as it is written, and may end early.
    """

    def __init__(
        self,
        call_format: CallFormat,
        schemas: Mapping[str, Schema],
        *,
        several: bool = True,
        only_calls: bool = False,
        only_whole: bool = False,
    ) -> None:
        self.num_calls = 0
        self._format = call_format
        self._schemas = schemas
        self._several = several
        self._only_calls = only_calls
        self._only_whole = only_whole
        self._state: Literal["start", "text", "object", "after"] = (
            "start" if call_format.bare else "text"
        )
        self._held = ""
        self._space = ""  # white space that is content only if more content follows
        self._object: CallReader = call_format.reader(schemas, None)
        self._object_text = ""  # with the begin marker, until the object is known to be a call
        self._is_announced = False

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """Return the parts that are certain by now: content, and parts of calls."""
        if self._is_plain(text):
            return text, []
        self._held += text
        content: list[str] = []
        deltas: list[CallDelta] = []
        steps = {"start": self._start, "text": self._read_text, "after": self._finish_call}
        goes_on = True
        while goes_on and self._held:
            if self._state == "object":
                goes_on = self._read_object(content, deltas)
            else:
                goes_on = steps[self._state](content)
        return "".join(content), deltas

    def flush(self) -> str:
        """Return the content that was held back; to be called after the last text."""
        if self.num_calls or self._only_calls:  # white space, or an incomplete call
            return ""
        unfinished = self._object_text if self._state == "object" else ""
        return self._space + unfinished + self._held

    def _is_plain(self, text: str) -> bool:
        """Return whether all of the text is content: the most frequent case, checked first."""
        if self._state != "text" or self._held or self._space or self._format.begin[0] in text:
            return False
        return not text[-1:].isspace()

    def _add_content(self, text: str, content: list[str]) -> None:
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown) :]
        content.append(shown)

    def _start(self, _content: list[str]) -> bool:
        text = self._held.lstrip()
        if text.startswith("{"):
            self._begin_object(len(self._held) - len(text), self._schemas.keys())
        elif text:
            self._state = "text"
        return bool(text)

    def _read_text(self, content: list[str]) -> bool:
        at, is_whole = find_marker(self._held, self._format.begin)
        self._add_content(self._held[:at], content)
        self._held = self._held[at:]
        if is_whole:
            self._begin_object(len(self._format.begin), None)
        return is_whole

    def _begin_object(self, num_before: int, only_names: Collection[str] | None) -> None:
        """Begin to read an object, after a begin marker of `num_before` characters."""
        self._state = "object"
        self._object = self._format.reader(self._schemas, only_names)
        self._object_text, self._held = self._held[:num_before], self._held[num_before:]
        self._is_announced = False

    def _read_object(self, content: list[str], deltas: list[CallDelta]) -> bool:
        count = self._object.push(self._held)
        text, self._held = self._held[:count], self._held[count:]
        if not self._is_announced:
            self._object_text += text
        if self._object.is_done or (self._object.is_call and not self._only_whole):
            self._add_delta(deltas)
        if self._object.is_broken and not self._is_announced:
            self._state = "text"
            self._add_content(self._object_text, content)
        elif self._object.is_broken or self._object.is_done:
            self._state = "after"
        return self._state != "object"

    def _add_delta(self, deltas: list[CallDelta]) -> None:
        name = None if self._is_announced else self._object.name
        self.num_calls += not self._is_announced
        self._is_announced = True
        arguments = self._object.take_arguments()
        if (name or arguments) and (self._several or self.num_calls == 1):
            call_id = self._new_id() if name else None
            deltas.append(CallDelta(self.num_calls - 1, name, arguments, call_id))

    def _new_id(self) -> str:
        number = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(self._format.id_length))
        return f"{self._format.id_prefix}{number}"

    def _finish_call(self, _content: list[str]) -> bool:
        """Skip the call's end marker, or the separators before the next call."""
        text = self._held.lstrip()
        end, begin = self._format.end, self._format.begin
        if end and text.startswith(end):
            self._held, self._state = text[len(end) :], "text"
            return True
        if end and end.startswith(text):
            return False
        if not self._format.continues:
            self._state = "text"
            return True
        text = self._held.lstrip(f"{self._format.separators} \t\r\n")
        if text.startswith("{"):
            self._held = text
            self._begin_object(0, self._schemas.keys())
        elif text.startswith(begin) or not begin.startswith(text):
            self._held = text if text.startswith(begin) else self._held
            self._state = "text"
        else:
            return False
        return True
