"""The intake: how many bytes of bodies may be between their first byte and the queue at one time.

One body is bounded, and so is the queue. Before it, thousands could come in and wait to be read.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from server.http.connection import read_body
from server.http.errors import too_busy

# uvicorn reads as much ahead on each connection, whatever is held here.
FREE_BYTES = 64 * 1024


class BodyMemory:
    """At most `max_body_bytes` in each body, `max_bytes` in all beyond the `FREE_BYTES` of each.

    Large ones that are whole at the same time are handed out one by one, so that the loop turns
    between the reading of one and of the next. A batch's file is not one of them: it goes to the
    disk.
    """

    def __init__(self, max_bytes: int, max_body_bytes: int) -> None:
        self.num_bytes = 0
        self._max_bytes, self._max_body_bytes = max_bytes, max_body_bytes
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """A request's body, which is held for the length of the block.

        Raises what `read_body` raises, and `ApiError` (429) where there is no room for it.
        """
        held = 0

        def grow(num_bytes: int) -> None:
            nonlocal held
            more = max(0, num_bytes - FREE_BYTES) - held
            if self.num_bytes + more > self._max_bytes:
                raise too_busy("Too many large requests are coming in. Please retry shortly.")
            self.num_bytes += more
            held += more

        try:
            body = await read_body(request, self._max_body_bytes, grow)
            if held:
                async with self._turn:
                    await asyncio.sleep(0)
            yield body
        finally:
            self.num_bytes -= held
