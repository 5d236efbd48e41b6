"""Fixed instances: those that the settings name, which nothing starts or stops."""

import asyncio
import logging
from collections.abc import Sequence

from router.actuators.actuator import ActuatorError, Report
from router.actuators.membership import Membership

log = logging.getLogger("tdpipe")


class FixedActuator:
    """An `Actuator` of the instances with these URLs."""

    def __init__(self, instances: Sequence[str]) -> None:
        self._instances = tuple(dict.fromkeys(instances))
        self._members = Membership(len(self._instances))
        self._closed = asyncio.Event()
        self.num_refused = 0
        """How often another instance was asked for."""

    async def run(self, on_joined: Report, on_gone: Report) -> None:
        """See `Actuator`."""
        self._members.begin(on_joined, on_gone)
        self._members.update(self._instances)
        await self._closed.wait()

    async def grow(self) -> None:
        """Count the request; the first one is logged."""
        if not self.num_refused:
            log.warning(
                "more instances are needed than the %d in instances; actuator fixed starts none",
                len(self._instances),
            )
        self.num_refused += 1

    async def remove(self, name: str) -> None:
        """Raises `ActuatorError`: the router has not started the instance."""
        self._members.rejoin(name)
        raise ActuatorError(f"{name} is not removed: actuator fixed stops no instances")

    def pick(self, names: Sequence[str]) -> str | None:
        """None of them."""
        return self._members.pick(names)

    async def close(self) -> None:
        """End `run`."""
        self._closed.set()
