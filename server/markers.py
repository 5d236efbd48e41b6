"""Markers: fixed words in a growing text, of which only the beginning may have come."""


def find_marker(text: str, marker: str) -> tuple[int, bool]:
    """Where `marker` first begins in `text`, and whether it is there in full.

    (i, True): it is. (i, False): what begins at `i` may become one with the text to come, which is
    the text's end where nothing can.
    """
    at = text.find(marker)
    if at >= 0:
        return at, True
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return len(text) - length, False
    return len(text), False
