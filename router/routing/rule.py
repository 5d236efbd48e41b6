"""The interface of routing rules."""

from collections.abc import Sequence
from typing import Protocol

from router.instance import Instance, Request


class Rule(Protocol):
    """Chooses an instance of a macro instance for a request."""

    is_patient: bool
    """Whether requests may wait for an instance; otherwise `choose` never returns None."""

    def choose(self, request: Request, members: Sequence[Instance], now: float) -> Instance | None:
        """The instance that gets the request at `now` (seconds), or None to let it wait.

        `members` can serve requests; the one that got the last request comes first.
        """
        ...
