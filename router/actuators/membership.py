"""The membership: the instances that an actuator has reported, and who waits for one to go."""

import asyncio
from collections.abc import Collection, Sequence

from router.actuators.actuator import Report


class Membership:
    """Turns the set of instances that are there into reports of those that come and go."""

    def __init__(self, min_instances: int) -> None:
        self._min_instances = min_instances
        self._names: dict[str, None] = {}  # in the order in which they came
        self._changed = asyncio.Event()
        self._on_joined: Report = _ignore
        self._on_gone: Report = _ignore

    def begin(self, on_joined: Report, on_gone: Report) -> None:
        """Report to these from now on."""
        self._on_joined, self._on_gone = on_joined, on_gone

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> frozenset[str]:
        """The names of all instances that are there."""
        return frozenset(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def update(self, present: Collection[str]) -> None:
        """These are there now, and no others."""
        for name in [name for name in self._names if name not in present]:
            self.leave(name)
        for name in present:
            self.join(name)

    def join(self, name: str) -> None:
        """Report an instance unless it is known."""
        if name not in self._names:
            self._names[name] = None
            self._on_joined(name)

    def leave(self, name: str) -> None:
        """Report that an instance is gone if it was known."""
        if name in self._names:
            del self._names[name]
            self._on_gone(name)
            self._changed.set()

    def rejoin(self, name: str) -> None:
        """Report an instance again that was to be removed and is still there."""
        if name in self._names:
            self._on_joined(name)

    async def wait_gone(self, name: str, timeout_s: float) -> bool:
        """Whether the instance is gone, within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                while name in self._names:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return name not in self._names
        return True

    def pick(self, names: Sequence[str]) -> str | None:
        """The first of these that is there, unless no instance can be spared."""
        if len(self._names) <= self._min_instances:
            return None
        return next((name for name in names if name in self._names), None)


def _ignore(_: str) -> None:
    pass
