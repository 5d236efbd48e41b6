"""The pending queue: requests that wait for an instance, in the order in which they are tried.

Online requests that were broken off come first, then the other online ones in order of arrival, and
offline ones last. If hopeless requests come last, those that have missed their target are behind
the other online ones.
"""

from collections.abc import Iterator

from sortedcontainers import SortedDict

from router.decisions.instance import Request

_BROKEN, _ONLINE, _HOPELESS, _OFFLINE = range(4)
_Key = tuple[int, float, int]


class PendingQueue:
    """Requests without an instance; all operations are O(log n)."""

    def __init__(self) -> None:
        self._keys: dict[int, _Key] = {}
        self._in_order: SortedDict[_Key, Request] = SortedDict()
        self.num_offline = 0

    def add(self, request: Request) -> None:
        """Add a request that has no instance, or none any more."""
        if request.kind == "offline":
            self._put(request, _OFFLINE)
        else:
            self._put(request, _BROKEN if request.was_sent else _ONLINE)

    def give_up_hope(self, arrived_before: float) -> None:
        """Put the online requests that arrived earlier behind the others."""
        late = self._in_order.irange((_ONLINE, float("-inf"), 0), (_ONLINE, arrived_before, -1))
        for request in [self._in_order[key] for key in late]:
            self.remove(request)
            self._put(request, _HOPELESS)

    def remove(self, request: Request) -> None:
        """Remove a request; it may not be queued."""
        key = self._keys.pop(request.request_id, None)
        if key is not None:
            del self._in_order[key]
            self.num_offline -= key[0] == _OFFLINE

    def waiting_since_before(self, at: float) -> list[Request]:
        """The requests that wait for longer."""
        earlier = (
            self._in_order[key]
            for queue in (_BROKEN, _ONLINE, _HOPELESS, _OFFLINE)
            for key in self._in_order.irange((queue, float("-inf"), 0), (queue, at, -1))
        )
        return [request for request in earlier if request.waits_since < at]

    def oldest(self) -> Request | None:
        """The online request that waits for longest, or None."""
        firsts = []
        for queue in (_BROKEN, _ONLINE, _HOPELESS):
            bounds = (queue, float("-inf"), 0), (queue + 1, float("-inf"), 0)
            first = next(self._in_order.irange(*bounds), None)
            if first is not None:
                firsts.append(self._in_order[first])
        return min(firsts, key=lambda request: request.waits_since, default=None)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._in_order.values())

    def __len__(self) -> int:
        return len(self._keys)

    def _put(self, request: Request, queue: int) -> None:
        key = (queue, request.arrived_at, request.request_id)
        self.num_offline += queue == _OFFLINE
        self._keys[request.request_id] = key
        self._in_order[key] = request
