"""Sets of custom_ids at 16 bytes each, so that a million of them take 16 MB."""

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
        """A copy for membership tests."""
        return SortedIds(bytes(self._digests))

    def repetitions(self) -> list[int]:
        """The indices, in order, of ids that had been added before."""
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
    """Two of a million ids collide with a probability of 1e-24.

    numpy drops trailing zero bytes, so the last byte is not zero.
    """
    return blake2b(custom_id.encode(), digest_size=_DIGEST_BYTES - 1).digest() + b"."
