"""Markers: fixed words in a growing text, of which only the beginning may have come."""


def find_marker(text: str, marker: str) -> tuple[int, bool]:
    """Where `marker` first begins in `text`, and whether it is there in full.

    (i, True): it is. (i, False): what begins at `i` may become one with the text to come, which is
    the text's end where nothing can.
    """
    at = text.find(marker)
    if at >= 0:
        return at, True
    at = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while at >= 0 and not marker.startswith(text[at:]):
        at = text.find(marker[0], at + 1)
    return (at if at >= 0 else len(text)), False
