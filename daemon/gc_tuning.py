"""GC tuning: prevents long pauses of a long-lived process by the garbage collector.

Objects made at start-up never become garbage, and the objects of a token or a request are freed by
reference counting. Only cycles are left to collect, and there are hardly any. By default, Python
looks for cycles whenever 700 more objects were made than freed. This is rare if requests arrive and
finish in equal numbers, and then Python scans all objects made since the last collection: with full
queues, 300,000 objects at once, in 70 to 240 ms in which no request is answered. Therefore the main
loop collects instead: new objects several times a second, in a few milliseconds, and all objects
every two minutes.
"""

import gc
import time

FULL_INTERVAL_S = 120.0


class GcTuning:
    """Disables automatic collection; create it after all long-lived objects of the process."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._next_full_at = time.monotonic() + FULL_INTERVAL_S

    def tidy(self) -> None:
        """Collect the objects that are due; call this a few times a second."""
        now = time.monotonic()
        if now < self._next_full_at:
            gc.collect(0)
            return
        gc.collect()
        self._next_full_at = now + FULL_INTERVAL_S
