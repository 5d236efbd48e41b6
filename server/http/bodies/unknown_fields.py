"""Unknown fields of requests: ignored with a warning, or refused with `--strict-fields`.

Clients send fields of other servers (`cache_control`, `chat_id`, `thinking`) that change nothing
here. They are counted by the kind of object that contains them. Names of fields come from clients,
so they are neither labels of the counter nor logged without limits.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable

LOG_INTERVAL_S = 10.0
MAX_LOGGED_NAMES = 8
_NAME = re.compile(r"[\w.\[\]-]{1,64}", re.ASCII)

logger = logging.getLogger("tdpipe")


class FoundFields:
    """The unknown fields of one request; the context of pydantic's validation.

    `counts` has their number by the kind of object, `names` the first few of them.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.names: dict[str, None] = {}

    def add(self, kind: str, name: str) -> None:
        """Add a field of an object; `kind` is the object's name in the OpenAPI document."""
        self.counts[kind] += 1
        if len(self.names) < MAX_LOGGED_NAMES:
            self.names[f"{name if _NAME.fullmatch(name) else '(not a name)'} ({kind})"] = None


class UnknownFields:
    """What happens to unknown fields. All threads may use it.

    At most one line in `LOG_INTERVAL_S` is logged, which also reports the requests since the line
    before it. `count` is called with the kind of object and the number of its fields.
    """

    def __init__(
        self,
        *,
        strict: bool = False,
        count: Callable[[str, int], object] = lambda _kind, _number: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.strict = strict
        self._count, self._clock = count, clock
        self._lock = threading.Lock()
        self._silent_until = float("-inf")
        self._num_requests = 0
        self._names: dict[str, None] = {}

    def ignore(self, found: FoundFields) -> None:
        """Count and log the ignored fields of a request, if there are any."""
        if not found.counts:
            return
        for kind, number in found.counts.items():
            self._count(kind, number)
        with self._lock:
            self._num_requests += 1
            for name in found.names:
                if len(self._names) < MAX_LOGGED_NAMES:
                    self._names[name] = None
            now = self._clock()
            if now < self._silent_until:
                return
            self._silent_until = now + LOG_INTERVAL_S
            num_requests, names = self._num_requests, ", ".join(self._names)
            self._num_requests, self._names = 0, {}
        logger.warning(
            "ignored unknown fields of %d request%s: %s (--strict-fields refuses them)",
            num_requests,
            "" if num_requests == 1 else "s",
            names,
        )


IGNORED = UnknownFields()
"""Unknown fields are ignored, and not counted."""
