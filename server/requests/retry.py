"""The retry: an offline request is asked again until it has succeeded or is itself at fault.

That there is no engine, or no longer, is nobody's fault: it is waited for.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from server.http.errors import ApiError
from server.requests.engine_client import EngineClient

# An engine that is lost is noticed and replaced meanwhile, or this one still gives up on it.
RETRY_S = 1.0
# So often may a request fail in an engine that remains as it was.
MAX_FAILURES = 3

Answer = TypeVar("Answer")


async def ask_until_final(
    client: EngineClient,
    ask: Callable[[], Awaitable[Answer]],
    *,
    wait_open: Callable[[], Awaitable[None]] | None = None,
    on_retry: Callable[[], None] = lambda: None,
) -> Answer:
    """What `ask` returns in the end, or the `ApiError` that is the request's own fault.

    `wait_open` is waited for before each try, by default for the engine alone.
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
