"""An attack: malformed requests, one connection each, and the server's reaction to them."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import httptools

from bench.exchange import Address
from benchmarks.stress.malformed import Malformed

# The time in which a whole request must be answered, or its connection closed.
PATIENCE_S = 20.0
# The time after which the client of an incomplete request disconnects.
LINGER_S = 0.5
HUNG, ABANDONED, CUT = "hung", "abandoned by the client", "closed without an answer"
MAX_OPEN = 64
CONTINUE = 100


class Attack:
    """Outcomes by kind: the answer's status, or `HUNG`, `ABANDONED` or `CUT`."""

    def __init__(self, address: Address) -> None:
        self.outcomes: dict[str, Counter[int | str]] = {}
        self._address = address
        self._slots = asyncio.Semaphore(MAX_OPEN)

    async def run(self, requests: Iterable[Malformed], rate: float) -> None:
        """Send all, at this rate per second."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        async with asyncio.TaskGroup() as group:
            for number, request in enumerate(requests):
                await asyncio.sleep(began_at + number / rate - loop.time())
                await self._slots.acquire()
                task = group.create_task(self._send(request))
                task.add_done_callback(lambda _: self._slots.release())

    def failures(self) -> Counter[int | str]:
        """The outcomes that must not occur: 5xx, and requests that hung."""
        return Counter(
            {
                outcome: count
                for outcomes in self.outcomes.values()
                for outcome, count in outcomes.items()
                if outcome == HUNG or (isinstance(outcome, int) and outcome >= 500)
            }
        )

    async def _send(self, request: Malformed) -> None:
        outcome = await outcome_of(self._address, request)
        self.outcomes.setdefault(request.kind, Counter())[outcome] += 1


async def outcome_of(address: Address, request: Malformed) -> int | str:
    """Send one; returns the status of the answer, or `HUNG`, `ABANDONED` or `CUT` without one."""
    loop = asyncio.get_running_loop()
    transport, connection = await loop.create_connection(_Answer, address.host, address.port)
    try:
        transport.write(request.request)
        async with asyncio.timeout(PATIENCE_S if request.is_whole else LINGER_S):
            return await connection.outcome
    except TimeoutError:
        return HUNG if request.is_whole else ABANDONED
    finally:
        transport.abort()


class _Answer(asyncio.Protocol):
    """The first answer of a connection; the callbacks without a docstring are httptools'."""

    def __init__(self) -> None:
        self.outcome: asyncio.Future[int | str] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Parse a part of it; what cannot be parsed is not an answer."""
        with suppress(httptools.HttpParserError):
            self._parser.feed_data(data)

    def connection_lost(self, _exc: Exception | None) -> None:
        """The server has closed the connection."""
        self._settle(self._parser.get_status_code() or CUT)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status != CONTINUE:
            self._settle(status)

    def _settle(self, outcome: int | str) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
