"""GC tuning: the garbage collector must not pause a long-lived process for long.

What was made at start-up never becomes garbage, and what a token or a request needs is freed by its
reference count: only cycles are left to collect, and there are hardly any. Python would look for
them whenever 700 more objects have been made than freed. Where requests arrive and finish in equal
numbers that is seldom, and then it scans everything that was made since: 300,000 objects of full
queues in one go, 70 to 240 ms in which no request is answered. So the main loop collects: the new
objects several times a second, a few milliseconds each, and everything now and then.
"""

import gc
import time

FULL_INTERVAL_S = 120.0


class GcTuning:
    """Disables automatic collection; make it when the process has all that it keeps."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._next_full_at = time.monotonic() + FULL_INTERVAL_S

    def tidy(self) -> None:
        """Collect what is due; call it a few times a second."""
        now = time.monotonic()
        if now < self._next_full_at:
            gc.collect(0)
            return
        gc.collect()
        self._next_full_at = now + FULL_INTERVAL_S
