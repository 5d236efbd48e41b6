"""What the router knows of an instance's prefix cache: what it has told, and what it was sent.

The keys of requests that were sent are not told before their prefill is over. Until then, the next
turn of the same conversation, or another request with the same beginning, must find them here. An
instance without a prefix cache never tells any: the keys of a request count only while it is open,
and until the status that follows its end can have told them.
"""

from collections import Counter, deque
from collections.abc import Iterable

Keys = tuple[int, ...]


class PrefixView:
    """The keys (see `wire.prefix_keys`) that an instance has, or soon will have."""

    def __init__(self) -> None:
        self._told: set[int] = set()
        self._sent: Counter[int] = Counter()
        self._ended: deque[tuple[float, Keys]] = deque()

    def __contains__(self, key: int) -> bool:
        return key in self._told or key in self._sent

    def __len__(self) -> int:
        """How many keys are held."""
        return len(self._told) + len(self._sent)

    def send(self, keys: Keys) -> None:
        """A request with these keys was sent."""
        self._sent.update(keys)

    def end(self, keys: Keys, now: float) -> None:
        """A request with these keys has ended, or has left the instance."""
        if keys:
            self._ended.append((now, keys))

    def begin_anew(self) -> None:
        """A new stream of statuses begins, whose first one tells all keys."""
        self._told.clear()

    def tell(self, added: Iterable[int], dropped: Iterable[int], known_until: float) -> None:
        """Take a status, which counts what had ended `known_until` then."""
        self._told.difference_update(dropped)
        self._told.update(added)
        while self._ended and self._ended[0][0] <= known_until:
            for key in self._ended.popleft()[1]:
                self._sent[key] -= 1
                if not self._sent[key]:
                    del self._sent[key]
