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
        self._skipped = ""  # the end of the text that was shown whatever it holds

    def skip(self, piece: str) -> str:
        """Text that is shown though it may hold a stop string; one may begin in it."""
        self._skipped = (self._skipped + piece)[-(self._longest - 1) :] if self._longest > 1 else ""
        return piece

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string has ended the whole."""
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            self._held = ""
            start, self.matched = match
            return text[: max(0, start + len(self.matched) * self._include)], True
        cut = len(text) - self._num_held(text)
        if cut:
            self._skipped = ""  # had a stop string begun in it, nothing would be shown
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where the first complete stop string begins in the text or before, and which it is."""
        whole, before = self._skipped + text, len(self._skipped)
        # What is complete before the text begins does not count.
        found = (
            (whole.find(stop, max(0, before - len(stop) + 1)) - before, stop)
            for stop in self._stops
        )
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= -before]
        return min(ends)[1:] if ends else None

    def _num_held(self, text: str) -> int:
        """How many of the last characters may yet become a stop string, or the end of one."""
        whole = self._skipped + text
        for length in range(min(self._longest - 1, len(whole)), 0, -1):
            if any(stop.startswith(whole[-length:]) for stop in self._stops):
                return min(length, len(text))
        return 0
