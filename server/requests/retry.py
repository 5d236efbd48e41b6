"""The retry: repeats an offline request until it succeeds or its error is its own fault.

A missing engine is not the fault of the request, so the retry waits for an engine.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from server.http.errors import ApiError
from server.requests.engine_client import EngineClient

# The pause before a retry, in which a lost engine is detected and replaced.
RETRY_S = 1.0
# The number of failures of one request while the engine was not replaced.
MAX_FAILURES = 3

Answer = TypeVar("Answer")


async def ask_until_final(
    client: EngineClient,
    ask: Callable[[], Awaitable[Answer]],
    *,
    wait_open: Callable[[], Awaitable[None]] | None = None,
    on_retry: Callable[[], None] = lambda: None,
) -> Answer:
    """Return the result of `ask`. Raises an `ApiError` that is the fault of the request.

    `wait_open` is awaited before each try; the default waits for the engine.
    """
    num_failures = 0
    while True:
        await (wait_open or client.wait_ready)()
        engine = client.ready
        try:
            return await ask()
        except ApiError as error:
            if error.is_final:
                raise
            failure = error
        on_retry()
        await asyncio.sleep(RETRY_S)
        is_same_engine = client.is_ready and client.ready is engine
        num_failures += failure.status >= 500 and is_same_engine
        if num_failures == MAX_FAILURES:
            raise failure
