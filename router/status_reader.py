"""Reads the status stream of one instance: JSON lines of `GET /instance/status`, without an end."""

import asyncio
import logging

import msgspec

from router.fleets import Fleets
from router.upstream.connection import UpstreamLostError
from router.upstream.framing import payload
from router.upstream.instance_link import InstanceLink
from wire.instance_status import SLACK_QUANTILES, InstanceStatus

PATH = b"/instance/status"
MAX_LINE_BYTES = 4 * 1024 * 1024
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
_REASONS = {
    409: "it belongs to another router",
    401: "it refuses the router's key (instance_api_key)",
    404: "it has no /instance/status: is it an older tdpipe, or another server?",
}

logger = logging.getLogger("tdpipe")


class StatusError(Exception):
    """The instance does not send what it should; the message tells what."""


class StatusReader:
    """Passes the statuses of an instance to `fleets`, and reports it lost when they stop.

    The instance belongs to the router named `owner` as long as the stream is open.
    """

    def __init__(
        self, link: InstanceLink, fleets: Fleets, stale_after_s: float, owner: str
    ) -> None:
        self._link, self._fleets, self._stale_after_s = link, fleets, stale_after_s
        self._path = PATH + b"?owner=" + owner.encode()
        self._reading: asyncio.Future[str] | None = None
        self._released_s = 0.0
        self._decoder = msgspec.json.Decoder(InstanceStatus)
        self._line = bytearray()
        self._begins = True
        self._pause_s = FIRST_PAUSE_S

    async def run(self) -> None:
        """Read, and connect again when the stream has ended; never returns."""
        while True:
            if self._released_s:
                released_s, self._released_s = self._released_s, 0.0
                await asyncio.sleep(released_s)
                continue
            self._reading = asyncio.ensure_future(self._read())
            try:
                reason = await self._reading
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                continue
            self._fleets.lose(self._link.name, reason)
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def release(self, pause_s: float) -> None:
        """Leave the instance to other routers, and ask for it again after `pause_s` seconds."""
        self._released_s = pause_s
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self) -> str:
        """Read one stream to its end; returns why it has ended."""
        self._line.clear()
        self._begins = True
        try:
            async with asyncio.timeout(self._stale_after_s) as patience:
                await self._follow(patience)
        except TimeoutError:
            return f"it has sent no status for {self._stale_after_s:g} s"
        except (UpstreamLostError, StatusError) as error:
            return str(error)
        return "it has ended its status stream"

    async def _follow(self, patience: asyncio.Timeout) -> None:
        loop = asyncio.get_running_loop()
        pool = self._link.pool
        headers = ((b"accept", b"application/jsonl"),)
        async with pool.asked(pool.address.get(self._path, headers)) as upstream:
            assert upstream.head is not None
            status = upstream.head.status
            if status != 200:
                raise StatusError(
                    _REASONS.get(status, f"it answers /instance/status with {status}")
                )

            def take(piece: bytes) -> None:
                if self._take(payload(piece) if upstream.is_chunked else piece):
                    patience.reschedule(loop.time() + self._stale_after_s)

            await upstream.relay(take)

    def _take(self, data: bytes) -> bool:
        """Report the statuses that are complete; return whether there was any."""
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._line = rest
        if len(rest) > MAX_LINE_BYTES:
            raise StatusError("a status has no end")
        for line in lines:
            try:
                status = self._decoder.decode(line)
                _check(status)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
                raise StatusError(f"its status cannot be read: {error}") from error
            self._fleets.report(self._link.name, status, begins=self._begins)
            self._begins = False
            self._pause_s = FIRST_PAUSE_S
        return bool(lines)


def _check(status: InstanceStatus) -> None:
    """Raise `ValueError` if lists that belong together have other lengths than they should."""
    promises = status.promises
    for quantiles in (promises.slack_s, promises.projected_slack_s):
        if quantiles and len(quantiles) != len(SLACK_QUANTILES):
            raise ValueError(f"{len(quantiles)} quantiles instead of {len(SLACK_QUANTILES)}")
    if len(promises.costs.num_tokens) != len(promises.costs.seconds):
        raise ValueError("costs without their number of tokens")
