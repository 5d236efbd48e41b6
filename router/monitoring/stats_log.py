"""The stats log of the router: a line about its load at an interval, while anything happens."""

import logging
import time
from collections.abc import Callable

from daemon.observability.logs import fields
from router.fleets import Fleets

logger = logging.getLogger("tdpipe")


class StatsLog:
    """Call `tick` often; at the ends of intervals it logs a line, and one more after the last."""

    def __init__(
        self, fleets: Fleets, interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """With an interval of 0 seconds, nothing is logged."""
        self._fleets, self._interval_s, self._clock = fleets, interval_s, clock
        self._began_at, self._num_before, self._was_idle = clock(), 0, True

    def tick(self) -> None:
        """Log if an interval has passed."""
        seconds = self._clock() - self._began_at
        if not self._interval_s or seconds < self._interval_s:
            return
        fleets = self._fleets
        num_new, num_open = fleets.num_requests - self._num_before, fleets.num_open
        self._began_at, self._num_before = self._clock(), fleets.num_requests
        is_idle = not num_new + num_open
        was_idle, self._was_idle = self._was_idle, is_idle
        if is_idle and was_idle:
            return
        links = fleets.links.values()
        num_up = sum(link.is_up for link in links)
        num_routed = sum(link.num_open for link in links)
        logger.info(
            "%.1f requests/s, %d open and %d waiting for an instance, %d of %d instances are up",
            num_new / seconds,
            num_routed,
            num_open - num_routed,
            num_up,
            len(links),
            extra=fields(
                requests_per_s=round(num_new / seconds, 3),
                open=num_routed,
                waiting=num_open - num_routed,
                instances_up=num_up,
                instances=len(links),
            ),
        )
