"""Markers: fixed strings in a growing text, of which only the beginning may have arrived."""


def find_marker(text: str, marker: str) -> tuple[int, bool]:
    """Return where `marker` first begins in `text`, and whether it is complete.

    (i, True): the complete marker begins at `i`. (i, False): the text from `i` on may become a
    marker; if no part of the text can, `i` is its end.
    """
    at = text.find(marker)
    if at >= 0:
        return at, True
    at = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while at >= 0 and not marker.startswith(text[at:]):
        at = text.find(marker[0], at + 1)
    return (at if at >= 0 else len(text)), False
