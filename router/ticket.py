"""A ticket: an open request, as it waits for an instance, loses it, and waits for another."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from router.upstream.instance_link import InstanceLink
from server.http.errors import ApiError


class Breakable(Protocol):
    """The connection that carries the request."""

    def abort(self, reason: str) -> None:
        """Close it; whoever reads from it gets an error."""


class Ticket:
    """One open request; `link` leads to its instance, while it has one."""

    def __init__(self, request_id: int, arrived_at: float, *, is_online: bool = True) -> None:
        self.request_id, self.arrived_at, self.is_online = request_id, arrived_at, is_online
        self.link: InstanceLink | None = None
        self.last_instance = ""
        self.connection: Breakable | None = None
        self.on_broken: Callable[[int], None] = lambda _: None
        self.on_began: Callable[[], None] = lambda: None
        self._broken_off: str | None = None
        self._error: ApiError | None = None
        self._changed = asyncio.Event()

    @property
    def was_routed(self) -> bool:
        """Whether it has had an instance."""
        return bool(self.last_instance)

    @property
    def error(self) -> ApiError | None:
        """Why it must end, if it must."""
        return self._error

    async def routed(self) -> InstanceLink:
        """Wait for an instance. Raises `ApiError` if the request is refused."""
        while self._error is None:
            if self.link is not None:
                return self.link
            await self._changed.wait()
            self._changed.clear()
        raise self._error

    def carry(self, connection: Breakable) -> None:
        """Use this connection from now on; it is closed when the instance is lost."""
        self.connection = connection
        if self._broken_off is not None:
            connection.abort(self._broken_off)

    def begin(self) -> None:
        """Note the first byte of the answer."""
        self.on_began()

    def give_back(self, num_done: int = 0) -> None:
        """Ask for another instance; `num_done` tokens of the answer are known."""
        self.connection = self._broken_off = None
        self.on_broken(num_done)

    def route(self, link: InstanceLink) -> None:
        """Take an instance."""
        self.link, self.last_instance = link, link.name
        self._changed.set()

    def break_off(self, reason: str) -> None:
        """Close the connection: the instance is lost."""
        self._broken_off = reason
        if self.connection is not None:
            self.connection.abort(reason)

    def fail(self, error: ApiError) -> None:
        """End the request with an error."""
        self._error = error
        self._changed.set()
        self.break_off(str(error))
