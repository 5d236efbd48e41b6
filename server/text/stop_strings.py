"""Stop strings: text is shown only once it can no longer be part of a stop string."""

from collections.abc import Sequence


class StopStrings:
    """Cuts a growing text before the first stop string in it, or after it with `include`.

    The first stop string is the one that ends first; if two end with the same character, the longer
    one is used. It is then in `matched`. The result does not depend on how the text was split into
    pieces.
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self.matched: str | None = None
        self._include = include
        self._stops = tuple(stops)
        self._held = ""
        self._longest = max(map(len, stops))
        self._skipped = ""  # the end of the text passed to `skip`

    def skip(self, piece: str) -> str:
        """Show text without searching it; a stop string may begin in it and end later."""
        self._skipped = (self._skipped + piece)[-(self._longest - 1) :] if self._longest > 1 else ""
        return piece

    def push(self, piece: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was found."""
        text = self._held + piece
        match = self._first_match(text)
        if match is not None:
            self._held = ""
            start, self.matched = match
            return text[: max(0, start + len(self.matched) * self._include)], True
        cut = len(text) - self._num_held(text)
        if cut:
            self._skipped = ""  # no stop string has begun in it: the text would have been held back
        self._held = text[cut:]
        return text[:cut], False

    def is_ended_by(self, piece: str) -> bool:
        """Whether `push` of this piece would find a stop string."""
        return self._first_match(self._held + piece) is not None

    def flush(self) -> str:
        """The text that was held back, after the last piece."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """The first complete stop string and where it starts, relative to `text`; it may be < 0."""
        whole, before = self._skipped + text, len(self._skipped)
        # A match that ends before the text begins does not count.
        found = (
            (whole.find(stop, max(0, before - len(stop) + 1)) - before, stop)
            for stop in self._stops
        )
        ends = [(start + len(stop), start, stop) for start, stop in found if start >= -before]
        return min(ends)[1:] if ends else None

    def _num_held(self, text: str) -> int:
        """How many of the last characters may be part of a stop string that is not complete yet."""
        whole = self._skipped + text
        for length in range(min(self._longest - 1, len(whole)), 0, -1):
            if any(stop.startswith(whole[-length:]) for stop in self._stops):
                return min(length, len(text))
        return 0
