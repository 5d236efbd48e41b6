"""GET /instance/status: a stream that tells routers what this daemon can promise."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from configs.config import Config
from server.http.connection import run_while_connected
from server.http.drain import Drain
from server.http.errors import ApiError, too_busy
from server.openai.rendering.sse import send_body
from server.requests.engine_client import EngineClient
from server.requests.prefix_digest import DigestChanges, PrefixDigest
from wire.instance_status import InstanceStatus
from wire.messages import EngineReady, Stats
from wire.promises import Promises

# A router takes an instance for stale that has been silent for several times as long.
INTERVAL_S = 0.25
MAX_FOLLOWERS = 16
_HEADERS = [(b"content-type", b"application/jsonl"), (b"cache-control", b"no-cache")]

_encode = msgspec.json.Encoder().encode


class InstanceStatuses:
    """The streams of statuses; the instance is new for each start of the daemon.

    A status is made when it can be written, so a slow reader gets fewer of them.
    """

    def __init__(
        self, config: Config, client: EngineClient, drain: Drain, digest: PrefixDigest
    ) -> None:
        self._names = tuple(config.model.names)
        self._targets = (config.scheduler.ttft_slo or 0.0, config.scheduler.tpot_slo or 0.0)
        self._instance = uuid.uuid4().hex
        self._client, self._drain, self._digest = client, drain, digest
        self._followers: list[asyncio.Event] = []
        self._owners: Counter[str] = Counter()  # streams by owner; at most one owner has any
        client.listeners.append(self._on_engine)
        drain.listeners.append(self._wake)

    def router(self) -> APIRouter:
        """Return the route, which is for routers, and not in the API's document."""
        router = APIRouter()
        router.add_api_route("/instance/status", self.follow, include_in_schema=False)
        return router

    async def follow(
        self, owner: Annotated[str | None, Query(min_length=1, max_length=128)] = None
    ) -> Response:
        """Statuses as JSON lines, until the client leaves or the daemon has drained.

        An instance belongs to one router at a time: to the `owner` whose stream is open.
        """
        if not self._may_own(owner):
            raise ApiError(409, "This instance belongs to another router.", code="owned")
        if len(self._followers) >= MAX_FOLLOWERS:
            message = f"Too many routers: {MAX_FOLLOWERS} may follow an instance."
            raise too_busy(message, "too_many_followers")
        return _StatusStream(self, owner)

    async def write(self, send: Send, owner: str | None) -> None:
        """Write one stream; it ends at once if another router became the owner meanwhile."""
        may_follow = self._may_own(owner)
        with (
            self._owned_by(owner if may_follow else None),
            self._following() as changed,
            self._digest.follow() as changes,
        ):
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            while may_follow and not self._drain.has_ended:
                changed.clear()
                await send_body(send, _encode(self._status(changes)) + b"\n", more=True)
                # Not wait_for, which in Python 3.11 loses a cancellation that meets an event.
                with suppress(TimeoutError):
                    async with asyncio.timeout(INTERVAL_S):
                        await changed.wait()
        await send_body(send, b"", more=False)

    def _may_own(self, owner: str | None) -> bool:
        return owner is None or not self._owners or owner in self._owners

    @contextmanager
    def _owned_by(self, owner: str | None) -> Iterator[None]:
        """The instance belongs to the owner within the block, if there is one."""
        if owner is not None:
            self._owners[owner] += 1
        try:
            yield
        finally:
            if owner is not None:
                self._owners[owner] -= 1
                self._owners = +self._owners  # without those that have no stream any more

    @contextmanager
    def _following(self) -> Iterator[asyncio.Event]:
        """An event that is set when there is something new."""
        changed = asyncio.Event()
        self._followers.append(changed)
        try:
            yield changed
        finally:
            self._followers.remove(changed)

    def _status(self, changes: DigestChanges) -> InstanceStatus:
        client = self._client
        ready, stats = client.ready, client.stats
        added, dropped = changes.take()
        return InstanceStatus(
            self._instance,
            client.is_ready,
            self._drain.has_begun,
            self._names,
            ready.max_model_len if ready else 0,
            *self._targets,
            (stats.promises if stats else None) or Promises(),
            added,
            dropped,
        )

    def _on_engine(self, message: Stats | EngineReady) -> None:
        if isinstance(message, EngineReady):
            self._digest.begin(message)
        self._wake()

    def _wake(self) -> None:
        for changed in self._followers:
            changed.set()


class _StatusStream(Response):
    """The response of one follower."""

    def __init__(self, statuses: InstanceStatuses, owner: str | None) -> None:
        super().__init__()
        self._statuses, self._owner = statuses, owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write until the client disconnects."""
        assert scope["type"] == "http"
        await run_while_connected(self._statuses.write(send, self._owner), receive)
