"""Rules without targets, as other routers have them: a request is sent to an instance at once."""

from collections.abc import Sequence

from router.decisions.instance import Instance, Request

IMBALANCE = 8
"""Open requests by which the instance with the longest prefix may exceed the least loaded one."""


def load(instance: Instance) -> tuple[int, int]:
    """What orders instances by load: open requests, then all that were ever sent."""
    return len(instance.open), instance.num_sent


class RoundRobin:
    """One after the other."""

    look_ahead = 0
    hopeless_after: float | None = None

    def choose(
        self,
        request: Request,
        members: Sequence[Instance],
        now: float,
    ) -> Instance | None:
        """See `Rule.choose`."""
        del request, now
        return min(members, key=lambda instance: instance.num_sent)


class LeastLoaded:
    """The instance with the fewest open requests."""

    look_ahead = 0
    hopeless_after: float | None = None

    def choose(
        self,
        request: Request,
        members: Sequence[Instance],
        now: float,
    ) -> Instance | None:
        """See `Rule.choose`."""
        del request, now
        return min(members, key=load)


class PrefixAffine:
    """The instance with most of the prompt in its prefix cache, unless it has too much to do."""

    look_ahead = 0
    hopeless_after: float | None = None

    def choose(
        self,
        request: Request,
        members: Sequence[Instance],
        now: float,
    ) -> Instance | None:
        """See `Rule.choose`."""
        del now
        least = min(members, key=load)
        most = max(members, key=lambda instance: instance.cached_tokens(request))
        if not most.cached_tokens(request) or len(most.open) > len(least.open) + IMBALANCE:
            return least
        return most
