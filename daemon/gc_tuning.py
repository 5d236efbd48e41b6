"""The garbage collector, kept from holding up a long-lived process.

What was made at the start never becomes garbage, and what a token or a request needs is freed by
its reference count: only cycles are left to be found, and there are hardly any. Python would look
for them whenever 700 more objects have been made than freed. Where requests come and go in equal
numbers that is seldom, and then it looks through all that has come since: 300,000 objects of full
queues in one go, 70 to 240 ms in which nobody is answered. So the main loop asks for it: of what is
new several times a second, a few milliseconds each, and of everything now and then.
"""

import gc
import time

FULL_INTERVAL_S = 120.0


class GcTuning:
    """From now on only `tidy` looks for garbage; make it when the process has all that it keeps."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._next_full_at = time.monotonic() + FULL_INTERVAL_S

    def tidy(self) -> None:
        """Call a few times a second."""
        now = time.monotonic()
        if now < self._next_full_at:
            gc.collect(0)
            return
        gc.collect()
        self._next_full_at = now + FULL_INTERVAL_S
