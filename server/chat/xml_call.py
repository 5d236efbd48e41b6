"""A call in Qwen3-Coder's XML, whose arguments are returned as JSON.

<function=get_weather>
<parameter=city>
Paris
</parameter>
</function>

The text of a parameter is a string or JSON; the type in the function's schema decides.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from server.grammar.call_grammar import json_type, json_types
from server.grammar.grammar_text import Schema

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_MAX_TAG = 256
# Models write Python's names of these values too.
_PYTHON = {"True": True, "False": False, "None": None}


class XmlCall:
    """Parses one call; a parameter is returned as soon as it is complete."""

    def __init__(self, schemas: Mapping[str, Schema]) -> None:
        self.name = ""
        self.is_done = False
        self.is_broken = False
        self._schemas = schemas
        self._tag = ""
        self._key = ""
        self._value: list[str] = []
        self._num_parameters = 0
        self._arguments: list[str] = []
        self._read: Callable[[str], None] = self._in_function

    @property
    def is_call(self) -> bool:
        """Whether the name is known."""
        return bool(self.name)

    def push(self, text: str) -> int:
        """Parse `text`, and return how many of its characters belong to the call."""
        for i, char in enumerate(text):
            self._read(char)
            if self.is_broken:
                return i
            if self.is_done:
                return i + 1
        return len(text)

    def take_arguments(self) -> str:
        """Return the JSON of the arguments since the last `take_arguments`."""
        parts, self._arguments = self._arguments, []
        return "".join(parts)

    def _in_function(self, char: str) -> None:
        value = self._in_tag(char, _FUNCTION)
        if value is not None:
            self.name, self._read = value, self._between

    def _between(self, char: str) -> None:
        tag = (self._tag + char).lstrip()
        if tag == _FUNCTION_END:
            self._arguments.append("}" if self._num_parameters else "{}")
            self.is_done = True
        elif _FUNCTION_END.startswith(tag):
            self._tag = tag
        else:
            value = self._in_tag(char, _PARAMETER)
            if value is not None:
                self._key, self._value, self._read = value, [], self._in_value

    def _in_tag(self, char: str, begin: str) -> str | None:
        """Add a character to a tag, and return the tag's value if it is complete."""
        self._tag = (self._tag + char).lstrip()
        value = self._tag[len(begin) : -1].strip()
        if (
            (not begin.startswith(self._tag) and not self._tag.startswith(begin))
            or (char == "\n" and self._tag)
            or len(self._tag) > _MAX_TAG
        ):
            self.is_broken = True
        elif char == ">":
            self._tag = ""
            self.is_broken = not value
            return value or None
        return None

    def _in_value(self, char: str) -> None:
        self._value.append(char)
        if char != ">" or "".join(self._value[-len(_PARAMETER_END) :]) != _PARAMETER_END:
            return
        text = "".join(self._value[: -len(_PARAMETER_END)])
        value = self._typed(text.removeprefix("\n").removesuffix("\n"))
        begin = ", " if self._num_parameters else "{"
        key, shown = (json.dumps(each, ensure_ascii=False) for each in (self._key, value))
        self._arguments.append(f"{begin}{key}: {shown}")
        self._num_parameters += 1
        self._read = self._between

    def _typed(self, text: str) -> Any:
        """Return the value that a text stands for, by the type of the parameter."""
        parameters = self._schemas.get(self.name, {}).get("properties")
        if not isinstance(parameters, Mapping) or self._key not in parameters:
            return text
        types = json_types(parameters[self._key])
        if types == {"string"}:
            return text
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return _PYTHON.get(text, text)
        is_other = json_type(value) not in types and not (
            json_type(value) == "integer" and "number" in types
        )
        return text if "string" in types and is_other else value
