"""The refusal log: sums up refused requests (429, 503), which may come by the thousand in overload.

The first refusal after a quiet time is logged by itself, all others as one line in an interval.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

INTERVAL_S = 10.0
STATUSES = frozenset({429, 503})
MAX_REASONS = 16

logger = logging.getLogger("tdpipe.access")


class RefusalLog:
    """Counts refusals by reason. `call_later` is that of the event loop, with seconds."""

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call_later, self._clock = call_later, clock
        self._counts: Counter[str] = Counter()
        self._began_at: float | None = None

    def add(self, reason: str) -> bool:
        """Count a refusal; returns whether it is to be logged by itself."""
        if self._began_at is None:
            self._begin()
            return True
        self._counts[reason if reason in self._counts or self._has_room() else "other"] += 1
        return False

    def _has_room(self) -> bool:
        return len(self._counts) < MAX_REASONS

    def _begin(self) -> None:
        self._began_at = self._clock()
        self._call_later(INTERVAL_S, self._end)

    def _end(self) -> None:
        assert self._began_at is not None
        seconds, self._began_at = self._clock() - self._began_at, None
        counts, self._counts = self._counts, Counter()
        if not counts:
            return
        logger.warning(
            "refused %d more requests in %.0f s: %s",
            counts.total(),
            seconds,
            ", ".join(f"{reason or 'unknown'} {count}" for reason, count in counts.most_common()),
        )
        self._begin()
