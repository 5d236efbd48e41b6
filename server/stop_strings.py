"""Stop strings: text is shown only once it can no longer be part of a stop string."""

from collections.abc import Sequence


class StopStrings:
    """Cuts a growing text before the stop string that is complete first, or after it.

    Of two that are complete with the same character, the longer one counts; `matched` is the one
    that did. The result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self.matched: str | None = None
        self._include = include
        self._stops = tuple(stops)
        self._held = ""
        self._longest = max(map(len, stops))

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string has ended the whole."""
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            self._held = ""
            start, self.matched = match
            return text[: start + len(self.matched) * self._include], True
        cut = len(text) - self._num_held(text)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where the first complete stop string begins, and which it is."""
        found = ((text.find(stop), stop) for stop in self._stops)
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= 0]
        return min(ends)[1:] if ends else None

    def _num_held(self, text: str) -> int:
        """How many of the last characters may yet become a stop string."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
