"""A call's JSON object, parsed character by character: `{"name": ..., "arguments": {...}}`.

The arguments are returned as they arrive, as the model writes them. They are not checked beyond
strings, brackets and JSON's alphabet: clients must validate them anyway (OpenAI's reference: "the
model does not always generate valid JSON").
"""

import json
from collections.abc import Callable, Collection

ARGUMENTS_KEYS = frozenset({"arguments", "parameters"})
# The keys of objects that are meant as calls.
_KNOWN_KEYS = ARGUMENTS_KEYS | {"name", "type", "id"}
_SPACE = frozenset(" \t\r\n")
_SCALAR = frozenset("+-.0123456789abcdefghijklmnopqrstuvwxyzE")
_NO_ARGUMENTS = "{}"


class CallObject:
    """Parses one object; feed it until `is_done` or `is_broken`.

    With `only_names`, an object with another name or with unknown keys is not a call, so that an
    answer that happens to be JSON is recognised early. With `name`, the object is only the
    arguments of this function. The object is broken at the first character that rules out a call.
    """

    def __init__(self, only_names: Collection[str] | None = None, *, name: str = "") -> None:
        self.name = name
        self.is_done = False
        self.is_broken = False
        self._only_names = only_names
        self._key = ""
        self._arguments: list[str] | None = None  # not returned yet; None before they begin
        self._value: list[str] = []
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._is_all_arguments = bool(name)
        self._is_arguments = bool(name)  # whether the current value is the arguments
        self._read: Callable[[str], None] = self._before_value if name else self._before_object

    @property
    def is_call(self) -> bool:
        """Whether the name is known and the arguments have begun, which makes it a call."""
        return bool(self.name) and self._arguments is not None

    def push(self, text: str) -> int:
        """Parse `text`, and return how many of its characters belong to the object."""
        for i, char in enumerate(text):
            self._read(char)
            if self.is_broken:
                return i
            if self.is_done:
                return i + 1
        return len(text)

    def take_arguments(self) -> str:
        """Return the text of the arguments since the last `take_arguments`."""
        parts, self._arguments = self._arguments or [], []
        return "".join(parts)

    def _before_object(self, char: str) -> None:
        if char == "{":
            self._read = self._before_key
        elif char not in _SPACE:
            self.is_broken = True

    def _before_key(self, char: str) -> None:
        if char == '"':
            self._begin_value(self._in_key)
        elif char == "}":
            self._end_object()
        elif char not in _SPACE:
            self.is_broken = True

    def _in_key(self, char: str) -> None:
        if self._ends_string(char):
            self._key = self._text()
            self._read = self._before_colon
            if self._only_names is not None and not self.is_call:
                self.is_broken = self._key not in _KNOWN_KEYS

    def _before_colon(self, char: str) -> None:
        if char == ":":
            self._is_arguments = self._key in ARGUMENTS_KEYS and self._arguments is None
            self._read = self._before_value
        elif char not in _SPACE:
            self.is_broken = True

    def _before_value(self, char: str) -> None:
        if char == '"':
            self._begin_value(self._in_text)
        elif char == "{" or (char == "[" and not self._is_arguments):
            self._begin_value(self._in_container)
            if self._is_arguments:
                self._arguments = []
            self._in_container(char)
        elif char in _SCALAR:
            self._begin_value(self._in_scalar)
            self._in_scalar(char)
        elif char not in _SPACE:
            self.is_broken = True

    def _in_text(self, char: str) -> None:
        if not self._ends_string(char):
            return
        self._read = self._after_value
        if self._key == "name" and not self.name:
            name = self._text()
            self.is_broken = not name or not self._allows(name)
            self.name = "" if self.is_broken else name
        elif self._is_arguments:  # some models write the arguments as JSON inside a string
            text = self._text()
            self._arguments = None if self.is_broken else [text]

    def _in_container(self, char: str) -> None:
        if self._in_string:
            self._in_string = not self._ends_string(char)
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if not self._depth:
                self._read = self._after_value
                self.is_done = self._is_all_arguments
        elif char not in _SCALAR and char not in _SPACE and char not in ",:":
            self.is_broken = True
            return
        if self._is_arguments and self._arguments is not None:
            self._arguments.append(char)

    def _in_scalar(self, char: str) -> None:
        if char in _SCALAR:
            self._value.append(char)
            return
        self._read = self._after_value
        if self._is_arguments and self._value != list("null"):
            self.is_broken = True
            return
        if self._is_arguments:
            self._arguments = [_NO_ARGUMENTS]
        self._after_value(char)

    def _after_value(self, char: str) -> None:
        if char == ",":
            self._read = self._before_key
        elif char == "}":
            self._end_object()
        elif char not in _SPACE:
            self.is_broken = True

    def _begin_value(self, read: Callable[[str], None]) -> None:
        self._value = []
        self._read = read

    def _ends_string(self, char: str) -> bool:
        """Add one character of a string, and return whether it is the closing quote."""
        if self._escaped:
            self._escaped = False
        elif char == '"':
            return True
        elif char == "\\":
            self._escaped = True
        self._value.append(char)
        return False

    def _allows(self, name: str) -> bool:
        return self._only_names is None or name in self._only_names

    def _text(self) -> str:
        """Return the string that has just ended; an invalid escape breaks the object."""
        try:
            return str(json.loads(f'"{"".join(self._value)}"', strict=False))
        except ValueError:
            self.is_broken = True
            return ""

    def _end_object(self) -> None:
        if self.name and self._arguments is None:
            self._arguments = [_NO_ARGUMENTS]
        self.is_done = self.is_call
        self.is_broken = not self.is_done
