"""The answer to one generation request: from whichever instances have it, in turn.

Nothing of the answer is parsed. A request is sent to another instance if its instance fails, and
goes on where it was if the client has a part of a stream already.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from daemon.observability.tracing import Tracing
from router.fleets import Fleets
from router.front.event_stream import EventStream, KeptMemory
from router.front.headers import PROMPT_TOKENS, to_client, to_instance
from router.front.resumption import ASKING, ResumptionError, read_progress, resuming_body
from router.front.route_trace import RouteTrace
from router.front.stream_errors import error_events
from router.inquiry import Inquiry, TokenRatio
from router.monitoring.metrics import NO_INSTANCE, Metrics, outcome_of
from router.ticket import Ticket
from router.upstream.connection import Head, NoSocketError, Upstream, UpstreamLostError
from router.upstream.framing import payload
from router.upstream.instance_link import InstanceLink
from server.http.connection import connection_of, run_while_connected
from server.http.drain import Drain
from server.http.errors import ApiError, timed_out, unavailable
from server.http.request_record import RequestRecord, record_of

MAX_WHOLE_BYTES = 64 * 1024 * 1024
GRACE_S = 5.0
"""A daemon ends a request at its timeout itself; so much later the router does."""
RETRY_PAUSE_S = 0.05
NO_SOCKET_S = 2.0
"""For so long, a request waits while the router itself cannot open a connection."""
_REFUSALS = (429, 503)

logger = logging.getLogger("tdpipe")


class _RefusedError(Exception):
    """An instance has no room for the request, or is not ready."""

    def __init__(self, head: Head, body: bytes) -> None:
        super().__init__(f"it refused the request with {head.status}")
        self.head, self.body = head, body


@dataclass(frozen=True, slots=True)
class Desk:
    """What the answers of a router share."""

    fleets: Fleets
    drain: Drain
    metrics: Metrics
    ratio: TokenRatio
    kept_memory: KeptMemory
    max_attempts: int
    request_timeout_s: float | None
    tracing: Tracing | None = None

    def learn(self, inquiry: Inquiry, head: Head) -> int | None:
        """Learn the bytes per token; returns the prompt's tokens, if the daemon tells them."""
        told = head.headers.get(PROMPT_TOKENS, b"")
        if not told.isdigit() or len(told) >= 12:
            return None
        self.ratio.learn(inquiry.num_prompt_bytes, int(told))
        return int(told)


class Answer(Response):
    """The response to one inquiry at `path`; `body_memory` is released at its end.

    Raises `ApiError` if nothing has been sent yet.
    """

    def __init__(
        self,
        desk: Desk,
        path: str,
        inquiry: Inquiry,
        body_memory: AsyncExitStack,
        trace: RouteTrace,
    ) -> None:
        super().__init__()
        self._desk, self._path, self._inquiry, self._trace = desk, path, inquiry, trace
        self._body_memory = body_memory
        self._body = inquiry.body
        self._stream: EventStream | None = None
        self._has_head = False  # whether the client has the head of a stream
        self._outcome, self._instance = "error", NO_INSTANCE

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Write the answer, unless the client disconnects."""
        async with self._body_memory:
            with self._desk.drain.request(), self._recorded(record_of(scope)):
                if not await run_while_connected(self._answer(scope, send), receive):
                    self._outcome = "disconnect"

    @contextmanager
    def _recorded(self, record: RequestRecord) -> Iterator[None]:
        try:
            yield
        except ApiError as error:
            self._outcome = outcome_of(error.status)
            raise
        finally:
            self._desk.metrics.requests.labels(self._instance, self._outcome).inc()
            record.outcome = "" if self._outcome == "success" else self._outcome
            if self._stream is not None:
                record.first_token_at = self._stream.began_at
                self._stream.close()

    async def _answer(self, scope: Scope, send: Send) -> None:
        self._desk.drain.check()
        try:
            async with self._in_time(GRACE_S):
                with self._desk.fleets.open(self._inquiry) as ticket:
                    await self._try_instances(ticket, scope, send)
        except ApiError as error:
            if not self._has_head:
                raise
            self._outcome = "timeout" if error.status == 408 else "error"
            is_cut = self._stream is not None and self._stream.is_cut
            end = error_events(self._path, error, is_cut=is_cut)
            await send({"type": "http.response.body", "body": end, "more_body": False})

    @asynccontextmanager
    async def _in_time(self, grace_s: float = 0.0) -> AsyncIterator[None]:
        """Raise `ApiError` (408) in the block when the request's timeout has passed."""
        limits = (self._inquiry.timeout_s, self._desk.request_timeout_s)
        timeout_s = min((each for each in limits if each is not None), default=None)
        try:
            async with asyncio.timeout(None if timeout_s is None else timeout_s + grace_s) as limit:
                yield
        except TimeoutError:
            if timeout_s is None or not limit.expired():
                raise
            raise timed_out(timeout_s) from None

    async def _try_instances(self, ticket: Ticket, scope: Scope, send: Send) -> None:
        num_left, give_up_at = self._desk.max_attempts, float("inf")
        while num_left:
            async with self._in_time():
                with self._trace.waiting():
                    link = await ticket.routed()
            self._instance = link.name
            try:
                await self._ask(link, ticket, scope, send, is_last=num_left == 1)
                return
            except (UpstreamLostError, _RefusedError) as error:
                failure = error
            if ticket.error is not None:
                raise ticket.error from None
            if isinstance(failure, NoSocketError):  # the instance has heard nothing of it
                give_up_at = min(give_up_at, time.monotonic() + NO_SOCKET_S)
                if time.monotonic() >= give_up_at:
                    message = "The router cannot open a connection now. Please retry shortly."
                    raise unavailable(message, "no_socket")
                await asyncio.sleep(RETRY_PAUSE_S)
            else:
                num_left -= 1
                self._note_failure(link, failure, num_left)
            if num_left and not await self._go_on(ticket, send):
                return
        raise unavailable(
            "The instances failed the request. Please retry shortly.", "instance_lost"
        )

    def _note_failure(
        self, link: InstanceLink, failure: UpstreamLostError | _RefusedError, num_left: int
    ) -> None:
        if isinstance(failure, _RefusedError):
            self._desk.fleets.suspect(link.name)  # others may have room
        else:
            logger.warning("instance %s failed a request: %s", link.name, failure)
            self._desk.fleets.blame(link.name, failure)
        if num_left:
            self._desk.metrics.retries.labels(link.name).inc()

    async def _go_on(self, ticket: Ticket, send: Send) -> bool:
        """Prepare the next attempt; return False if the client has got everything already.

        Raises `ApiError` if the stream cannot be resumed.
        """
        stream = self._stream
        if stream is None or not stream.has_begun:
            ticket.give_back()
            return True
        try:
            if not stream.is_kept:
                raise ResumptionError("too many bytes of open streams are kept (max_resume_bytes)")
            progress, is_complete = read_progress(stream.events())
        except ResumptionError as error:
            self._desk.metrics.resumptions.labels("impossible").inc()
            logger.warning("a stream cannot be resumed: %s", error)
            message = "The instance that answered the request was lost."
            raise unavailable(message, "instance_lost") from error
        if is_complete:  # only the end of the body was lost
            await self._end(send)
            return False
        if progress.id:
            self._body = resuming_body(self._inquiry.body, progress)
            self._trace.resumed(progress.num_done)
        ticket.give_back(progress.num_done)
        return True

    async def _ask(
        self, link: InstanceLink, ticket: Ticket, scope: Scope, send: Send, *, is_last: bool
    ) -> None:
        """Send the request to an instance, and pass its answer on.

        Raises `UpstreamLostError`, and `_RefusedError` unless it `is_last`.
        """
        address, record = link.pool.address, record_of(scope)
        passed = to_instance(scope["headers"], scope["state"]["request_id"])
        with self._trace.attempt(address, passed) as (headers, attempt):
            request = address.post(self._path.encode(), self._body, [*headers, ASKING])
            async with link.pool.asked(request, ticket.carry) as upstream:
                head = upstream.head
                assert head is not None
                attempt.answered(head.status)
                record.num_prompt_tokens = self._desk.learn(self._inquiry, head)
                if head.status == 200 and _is_event_stream(head):
                    await self._pass_stream(upstream, head, ticket, scope, send)
                    return
                body = await whole_body(upstream)
        if head.status == 401:
            raise UpstreamLostError("it refuses the router's key (instance_api_key)")
        is_final = head.headers.get(b"x-should-retry") == b"false"
        if head.status in _REFUSALS and not is_last and not is_final:
            raise _RefusedError(head, body)
        if self._has_head:
            self._desk.metrics.resumptions.labels("impossible").inc()
            logger.warning("instance %s does not resume a stream: %d", link.name, head.status)
            message = "The instance that answered the request was lost."
            raise unavailable(message, "instance_lost")
        await send_whole(send, head, body, is_traced=self._trace.is_on)
        self._outcome = outcome_of(head.status)

    async def _pass_stream(
        self, upstream: Upstream, head: Head, ticket: Ticket, scope: Scope, send: Send
    ) -> None:
        connection = connection_of(scope)
        assert connection is not None, "the router is served by uvicorn"
        if not self._has_head:
            headers = to_client(head.headers, is_traced=self._trace.is_on)
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            self._has_head = True
        if self._stream is None:
            self._stream = EventStream(connection, self._desk.kept_memory, ticket.begin)
        elif self._stream.has_begun:
            self._desk.metrics.resumptions.labels("resumed").inc()
        take = self._stream.take
        if not upstream.is_chunked:
            take = partial(_take_as_chunk, take)
        await upstream.relay(take, connection)
        await self._end(send)

    async def _end(self, send: Send) -> None:
        has_failed = self._stream is not None and self._stream.has_failed
        self._outcome = "error" if has_failed else "success"
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def whole_body(upstream: Upstream) -> bytes:
    """The body of a response. Raises `UpstreamLostError`, and `ApiError` (502) if it is too long.

    Another instance would give as long an answer.
    """
    parts, num_bytes = bytearray(), 0

    def take(piece: bytes) -> None:
        nonlocal num_bytes
        num_bytes += len(piece)
        if num_bytes > MAX_WHOLE_BYTES:
            raise _too_long()
        parts.extend(payload(piece) if upstream.is_chunked else piece)

    await upstream.relay(take)
    return bytes(parts)


def _too_long() -> ApiError:
    message = f"The answer has more than {MAX_WHOLE_BYTES} bytes. Please ask for a stream."
    headers = {"x-should-retry": "false"}
    return ApiError(502, message, kind="server_error", code="answer_too_long", headers=headers)


async def send_whole(send: Send, head: Head, body: bytes, *, is_traced: bool) -> None:
    """Send a whole response to the client."""
    headers = to_client(head.headers, len(body), is_traced=is_traced)
    await send({"type": "http.response.start", "status": head.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _is_event_stream(head: Head) -> bool:
    return head.headers.get(b"content-type", b"").startswith(b"text/event-stream")


def _take_as_chunk(take: Callable[[bytes], None], piece: bytes) -> None:
    take(b"%x\r\n%b\r\n" % (len(piece), piece))
