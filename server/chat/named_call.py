"""A call of a name and a JSON object: `get_weather[ARGS]{"city": "Paris"}`."""

from server.chat.call_object import CallObject

_SPACE = " \t\r\n"
# Mistral's models may write an identifier of their own between the name and the arguments.
CALL_ID = "[CALL_ID]"
_MAX_NAME = 256


class NamedCall:
    """Parses one call; `separator` stands between the name and the arguments.

    A text that begins with a JSON object or a list of them is read as such an object instead.
    """

    def __init__(self, separator: str) -> None:
        self.name = ""
        self.is_done = False
        self.is_broken = False
        self._separator = separator
        self._head = ""  # the name with what follows, until the arguments begin
        self._object: CallObject | None = None
        self._is_wrapped = False  # whether `_object` reads its name as well

    @property
    def is_call(self) -> bool:
        """Whether the name is known and the arguments have begun."""
        return self._object is not None and self._object.is_call

    def push(self, text: str) -> int:
        """Parse `text`, and return how many of its characters belong to the call."""
        count = 0
        if self._object is None:
            count = self._read_head(text)
        if self._object is None or self.is_broken:
            return count
        count += self._object.push(text[count:])
        self.is_done, self.is_broken = self._object.is_done, self._object.is_broken
        if self._is_wrapped:
            self.name = self._object.name
        return count

    def take_arguments(self) -> str:
        """Return the JSON of the arguments since the last `take_arguments`."""
        return "" if self._object is None else self._object.take_arguments()

    def _read_head(self, text: str) -> int:
        """Read up to the beginning of the object, and return the number of characters."""
        for i, char in enumerate(text):
            if char == "{":
                self._begin_object()
                return i
            if char == "[" and not self._head.strip():
                self._head = ""  # a list of objects
                continue
            self._head += char
            if len(self._head) > _MAX_NAME:
                self.is_broken = True
                return i
        return len(text)

    def _begin_object(self) -> None:
        name, found, rest = self._head.strip(_SPACE).partition(self._separator)
        name = name.partition(CALL_ID)[0]
        if not name and not found:
            self._object, self._is_wrapped = CallObject(), True
        elif name and not rest.strip(_SPACE) and not set(_SPACE + '"') & set(name):
            self.name = name
            self._object = CallObject(name=name)
        else:
            self.is_broken = True
