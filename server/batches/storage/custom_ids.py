"""Sets of custom_ids that take 16 bytes for each id: 16 MB for a million."""

from hashlib import blake2b

import numpy as np

_DIGEST_BYTES = 16


class CustomIds:
    """A growing set; membership is tested on a `sorted` copy."""

    def __init__(self) -> None:
        self._digests = bytearray()

    def __len__(self) -> int:
        return len(self._digests) // _DIGEST_BYTES

    def add(self, custom_id: str) -> None:
        """Add an id."""
        self._digests += _digest(custom_id)

    def sorted(self) -> "SortedIds":
        """Return a copy for membership tests."""
        return SortedIds(bytes(self._digests))

    def repetitions(self) -> list[int]:
        """Return the indices, in order, of ids that were added before."""
        digests = np.frombuffer(self._digests, dtype=f"S{_DIGEST_BYTES}")
        order = np.argsort(digests, kind="stable")
        ordered = digests[order]
        indices: list[int] = np.sort(order[1:][ordered[1:] == ordered[:-1]]).tolist()
        return indices


class SortedIds:
    """An immutable set for membership tests."""

    def __init__(self, digests: bytes) -> None:
        self._digests = np.sort(np.frombuffer(digests, dtype=f"S{_DIGEST_BYTES}"))

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, custom_id: str) -> bool:
        digest = np.bytes_(_digest(custom_id))
        index = np.searchsorted(self._digests, digest)
        return bool(index < len(self._digests) and self._digests[index] == digest)


def _digest(custom_id: str) -> bytes:
    """Hash an id; the probability that any two of a million ids collide is 1e-24.

    The last byte is never zero, because numpy drops trailing zero bytes.
    """
    return blake2b(custom_id.encode(), digest_size=_DIGEST_BYTES - 1).digest() + b"."
