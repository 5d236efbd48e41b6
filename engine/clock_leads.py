"""Clock leads: by how many seconds the engine's clock is ahead of the clock of a stage."""

from collections import deque

from wire.messages import Heartbeat

# The heartbeat with the shortest delay, of this many (two a second), sets a clock's offset.
CLOCK_WINDOW = 60


class ClockLeads:
    """Stages on the `same_host` have the same clock, so that their lead is 0.

    For stages on other hosts, the offset of the clock is estimated from heartbeats, as the smallest
    difference between the times of receipt and of sending. The estimate is too large by the
    shortest delay of a heartbeat.
    """

    def __init__(self, *, same_host: bool) -> None:
        self._same_host = same_host
        self._leads: dict[tuple[int, int], deque[float]] = {}

    def lead_s(self, beat: Heartbeat, now: float) -> float:
        """The lead over the clock of the stage that has sent this heartbeat, received at `now`."""
        if self._same_host:
            return 0.0
        leads = self._leads.setdefault((beat.stage, beat.epoch), deque(maxlen=CLOCK_WINDOW))
        leads.append(now - beat.sent_at)
        return min(leads)
