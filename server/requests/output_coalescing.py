"""The inbox: how a request learns that something has arrived for it, and how often."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

# To write an event to a client costs the server 10 to 20 us. A pause of ten times as much keeps it
# from doing little else; below the shortest there is nothing to be won.
PAUSE_PER_LISTENER_S = 0.0002
SHORTEST_PAUSE_S = 0.005

# A whole answer is read as it comes, so many tokens at a time: each takes 5 us, and all at the end
# would hold up others.
MANY_TOKENS = 4096

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """Where one request learns which of its sequences have something new.

    Whoever waits is woken; a `listener` is called instead, in `rounds`. Where `only_ends` matter,
    neither happens for what is not urgent, nor much.
    """

    def __init__(self, rounds: "OutputCoalescer") -> None:
        self.listener: Callable[[], None] | None = None
        self.only_ends = False
        self._coalescer = rounds
        self._changed: list[Item] = []
        self._num_tokens = 0
        self._arrival = asyncio.Event()

    def put(self, changed: Item) -> None:
        """Note that it has something new."""
        self._changed.append(changed)
        if self.only_ends or len(self._changed) > 1:
            return
        if self.listener is None:
            self._arrival.set()
        else:
            self._coalescer.add(self)

    def count_token(self) -> None:
        """Note that a token has come; many of them are not left to wait for an end."""
        self._num_tokens += 1
        if self._num_tokens == MANY_TOKENS:
            self.hurry()

    def hurry(self) -> None:
        """What is new is a first token or an end: somebody waits for it."""
        if self.listener is None:
            self._arrival.set()
        else:
            self._coalescer.add_urgent(self)

    def take(self) -> list[Item]:
        """All that has changed since the last call."""
        self._num_tokens = 0
        changed, self._changed = self._changed, []
        return changed

    async def wait(self) -> None:
        """Until something has arrived."""
        await self._arrival.wait()
        self._arrival.clear()


class OutputCoalescer:
    """Tells listeners in rounds: what arrives for one between two rounds is told together.

    A round is followed by a pause that grows with the number of its listeners, up to
    `longest_pause_s`. What is urgent does not wait for a round.
    """

    def __init__(self, longest_pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._waiting: dict[Inbox[Any], None] = {}
        self._urgent: dict[Inbox[Any], None] = {}
        self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, inbox: Inbox[Any]) -> None:
        """Tell its listener in the next round."""
        self._waiting[inbox] = None

    def add_urgent(self, inbox: Inbox[Any]) -> None:
        """Tell its listener after this burst."""
        self._urgent[inbox] = None

    def tell(self) -> None:
        """A burst has arrived: tell who is urgent, and all if it is time for a round."""
        urgent, self._urgent = self._urgent, {}
        for inbox in urgent:
            self._waiting.pop(inbox, None)
            _call(inbox)
        if not self._waiting:
            return
        now = self._clock()
        if now >= self._next_at:
            self._tell_all(now)
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._next_at - now, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self._tell_all(self._clock())

    def _tell_all(self, now: float) -> None:
        waiting, self._waiting = self._waiting, {}
        for inbox in waiting:
            _call(inbox)
        pause_s = min(len(waiting) * PAUSE_PER_LISTENER_S, self._longest_pause_s)
        self._next_at = now + pause_s if pause_s >= SHORTEST_PAUSE_S else now


def _call(inbox: Inbox[Any]) -> None:
    if inbox.listener is not None:
        inbox.listener()
