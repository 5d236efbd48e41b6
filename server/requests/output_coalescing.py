"""Output coalescing: notifies requests of new output, less often while many are open."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

# Writing an event to a client costs the server 10 to 20 us. A pause of ten times this duration
# leaves time for other work; pauses below the shortest gain nothing.
PAUSE_PER_LISTENER_S = 0.0002
SHORTEST_PAUSE_S = 0.005

# A non-streamed answer is decoded while it arrives, this many tokens at a time: each token takes
# 5 us, and decoding all of them at the end would block the event loop.
MANY_TOKENS = 4096

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """The list of sequences of one request that have new output.

    An arrival wakes the waiting task; if there is a `listener`, the coalescer calls it instead.
    With `only_ends`, neither happens until an end, an urgent arrival or many tokens.
    """

    def __init__(self, coalescer: "OutputCoalescer") -> None:
        self.listener: Callable[[], None] | None = None
        self.only_ends = False
        self._coalescer = coalescer
        self._changed: list[Item] = []
        self._num_tokens = 0
        self._arrival = asyncio.Event()

    def put(self, changed: Item) -> None:
        """Note that a sequence has new output."""
        self._changed.append(changed)
        if self.only_ends or len(self._changed) > 1:
            return
        if self.listener is None:
            self._arrival.set()
        else:
            self._coalescer.add(self)

    def count_token(self) -> None:
        """Note that a token has arrived; after many tokens, the request is notified anyway."""
        self._num_tokens += 1
        if self._num_tokens == MANY_TOKENS:
            self.flush_soon()

    def flush_soon(self) -> None:
        """Note an urgent arrival: a first token or an end."""
        if self.listener is None:
            self._arrival.set()
        else:
            self._coalescer.add_urgent(self)

    def take(self) -> list[Item]:
        """Return all items that have changed since the last call."""
        self._num_tokens = 0
        changed, self._changed = self._changed, []
        return changed

    async def wait(self) -> None:
        """Wait until something has arrived."""
        await self._arrival.wait()
        self._arrival.clear()


class OutputCoalescer:
    """Flushes inboxes together: each listener is called once for all arrivals since the last flush.

    A flush is followed by a pause that grows with the number of listeners it called, up to
    `longest_pause_s`. Urgent arrivals do not wait for a flush.
    """

    def __init__(self, longest_pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._waiting: dict[Inbox[Any], None] = {}
        self._urgent: dict[Inbox[Any], None] = {}
        self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, inbox: Inbox[Any]) -> None:
        """Call the listener of an inbox at the next flush."""
        self._waiting[inbox] = None

    def add_urgent(self, inbox: Inbox[Any]) -> None:
        """Call the listener of an inbox after the current burst."""
        self._urgent[inbox] = None

    def end_burst(self) -> None:
        """Call the urgent listeners after a burst of messages, or all of them if a flush is due."""
        urgent, self._urgent = self._urgent, {}
        for inbox in urgent:
            self._waiting.pop(inbox, None)
            _call(inbox)
        if not self._waiting:
            return
        now = self._clock()
        if now >= self._next_at:
            self._flush(now)
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._next_at - now, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._flush(self._clock())

    def _flush(self, now: float) -> None:
        waiting, self._waiting = self._waiting, {}
        for inbox in waiting:
            _call(inbox)
        pause_s = min(len(waiting) * PAUSE_PER_LISTENER_S, self._longest_pause_s)
        self._next_at = now + pause_s if pause_s >= SHORTEST_PAUSE_S else now


def _call(inbox: Inbox[Any]) -> None:
    if inbox.listener is not None:
        inbox.listener()
