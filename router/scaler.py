"""The scaler: hands the decisions about the number of instances to the actuator.

The core decides at once; an actuator takes its time. Each of its calls is a task of its own.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

from router.actuators.actuator import Actuator, ActuatorError, Report

logger = logging.getLogger("tdpipe")


class Scaler:
    """Calls an actuator; its errors are logged."""

    def __init__(self, actuator: Actuator) -> None:
        self._actuator = actuator
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, on_joined: Report, on_gone: Report) -> None:
        """Report the instances that come and go; see `Actuator.run`."""
        await self._actuator.run(on_joined, on_gone)

    def grow(self) -> None:
        """Ask for another instance."""
        self._start(self._actuator.grow())

    def choose(self, names: Sequence[str]) -> str | None:
        """The instance that may leave, of these in the order of preference; None if none may."""
        return self._actuator.pick(names)

    def remove(self, name: str) -> None:
        """Stop an instance that has no open requests any more."""
        self._start(self._actuator.remove(name))

    async def close(self) -> None:
        """End the calls that are open, and what the actuator has started on this host."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._actuator.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._logged(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @staticmethod
    async def _logged(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except ActuatorError as error:
            logger.warning("%s", error)
        # A bug of an actuator must not end the router, whose requests do not depend on it.
        except Exception:
            logger.exception("the actuator failed")
