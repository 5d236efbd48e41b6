"""The interface of routing rules."""

from collections.abc import Sequence
from typing import Protocol

from router.decisions.instance import Instance, Request


class Rule(Protocol):
    """Chooses an instance of a macro instance for a request."""

    look_ahead: int
    """How many waiting requests are tried after one that no instance can take."""
    hopeless_after: float | None
    """The share of the TTFT target after which a waiting request lets others go first, if any."""

    def choose(self, request: Request, members: Sequence[Instance], now: float) -> Instance | None:
        """The instance that gets the request at `now` (seconds), or None to let it wait.

        `members` can serve requests; the one that got the last request comes first.
        """
        ...
