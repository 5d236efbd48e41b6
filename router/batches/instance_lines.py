"""The lines of the router's batches, answered by whichever instances have room, in turn.

A line is an offline request: the cores route it when the targets of online requests leave
something over. It is sent again, to any instance, until its answer is final. Only the window
(`server.batches.window`) writes answers, one for each line, so an answer of an instance that was
taken to be lost is never written.
"""

import asyncio
import logging
from dataclasses import dataclass, replace

import msgspec

from router.front.answer import Desk, whole_body
from router.front.route_trace import RouteTrace
from router.inquiry import Inquiry, read_inquiry
from router.monitoring.metrics import outcome_of
from router.ticket import Ticket
from router.upstream.connection import Head, NoSocketError, UpstreamLostError
from router.upstream.instance_link import InstanceLink
from server.batches.storage.answers import OK, LineAnswer, answered
from server.batches.storage.lifecycle import new_id
from server.batches.storage.lines import LineRequest
from server.http.errors import ApiError, failed, unavailable

RETRY_S = 1.0
"""The pause before a line is sent again, in which a lost instance is noticed."""
POLL_INTERVAL_S = 0.1
MAX_FAILURES = 3
"""Failures of one line in instances that keep running; then it gets an error."""
_REFUSALS = (401, 429, 503)

logger = logging.getLogger("tdpipe")

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Told(msgspec.Struct):
    id: str = ""


_decode_id = msgspec.json.Decoder(_Told).decode


@dataclass(frozen=True, slots=True)
class _Reply:
    """What an instance has answered; `request_id` is the one that it was sent."""

    instance: str
    request_id: str
    head: Head
    body: bytes

    @property
    def is_final(self) -> bool:
        """Whether the same request would get the same answer again (see `ApiError.is_final`)."""
        if self.head.headers.get(b"x-should-retry") == b"false":
            return True
        return self.head.status < 500 and b"retry-after" not in self.head.headers


class _FailedError(Exception):
    """An instance has failed a line: with a `reply`, or without one."""

    def __init__(self, link: InstanceLink, incarnation: str, reply: _Reply | None = None) -> None:
        super().__init__()
        self._link, self._incarnation, self.reply = link, incarnation, reply

    @property
    def counts(self) -> bool:
        """Whether the instance still runs: its loss would not be the fault of a line."""
        status = self._link.status
        return self._link.is_up and status is not None and status.instance == self._incarnation


class InstanceLines:
    """Answers lines through the fleets of a router."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def count(self, outcome: str) -> None:
        """Count a line: success, error or retry."""
        self._desk.metrics.batch_requests.labels(outcome).inc()

    async def answer(self, request: LineRequest) -> LineAnswer:
        """See `server.batches.window.AnswerLine`. Raises `ApiError` if its answer is too long."""
        trace = RouteTrace.of_line(self._desk.tracing, request.url, request.custom_id)
        status, outcome = 500, "error"
        try:
            answer = await self._answer(request, trace)
            status, outcome = (OK, "success") if answer.is_success else (400, "invalid")
        finally:
            trace.end(status, outcome)
        return answer

    async def _answer(self, request: LineRequest, trace: RouteTrace) -> LineAnswer:
        body = offline_body(request.body)
        num_failures = 0
        while True:
            await self._wait_open()
            inquiry = replace(read_inquiry(body, self._desk.ratio), kind="offline")
            failure = None
            try:
                return self._finish(request, await self._ask(request.url, inquiry, trace))
            except _FailedError as error:
                failure = error
            except ApiError as error:
                if error.headers.get("x-should-retry") == "false":
                    raise
                # None of the line's own: no instance has room for it.
                logger.debug("a line waits: %s", error)
            self.count("retry")
            await asyncio.sleep(RETRY_S)
            if failure is None or not failure.counts:
                continue
            num_failures += 1
            if num_failures == MAX_FAILURES:
                if failure.reply is not None:
                    return self._finish(request, failure.reply)
                message = f"The instances failed this request {MAX_FAILURES} times."
                raise failed(message, retry=False)

    def _finish(self, request: LineRequest, reply: _Reply) -> LineAnswer:
        status = reply.head.status
        self._desk.metrics.requests.labels(reply.instance, outcome_of(status)).inc()
        reply_id = reply.request_id
        if status == OK:
            reply_id = _decode_id(reply.body).id or reply_id
        return answered(request.custom_id, status, reply_id, reply.body)

    async def _ask(self, path: str, inquiry: Inquiry, trace: RouteTrace) -> _Reply:
        """Return the final answer of the instance that the core chooses.

        Raises `ApiError` if none has room for the line, and `_FailedError`.
        """
        with self._desk.fleets.open(inquiry) as ticket:
            with trace.waiting():
                link = await ticket.routed()
            assert link.status is not None, "it has joined with its first status"
            incarnation = link.status.instance
            try:
                reply = await self._exchange(link, path, inquiry, ticket, trace)
            except UpstreamLostError as error:
                lost = error
            else:
                if reply.is_final:
                    return reply
                self._desk.metrics.retries.labels(link.name).inc()
                if reply.head.status in _REFUSALS:
                    self._desk.fleets.suspect(link.name)  # others may have room
                    raise unavailable("The instance has no room for the line.")
                raise _FailedError(link, incarnation, reply)
        if ticket.error is not None:
            raise ticket.error
        if isinstance(lost, NoSocketError):
            raise unavailable("The router has no socket for the line.")
        self._give_up(link, lost)
        raise _FailedError(link, incarnation)

    async def _exchange(
        self,
        link: InstanceLink,
        path: str,
        inquiry: Inquiry,
        ticket: Ticket,
        trace: RouteTrace,
    ) -> _Reply:
        """Send a request and read its answer. Raises `UpstreamLostError`, `ApiError`."""
        request_id = new_id("req_")
        own = [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode())]
        address = link.pool.address
        with trace.attempt(address, own) as (headers, attempt):
            request = address.post(path.encode(), inquiry.body, headers)
            async with link.pool.asked(request, ticket.carry) as upstream:
                head = upstream.head
                assert head is not None
                attempt.answered(head.status)
                self._desk.learn(inquiry, head)
                body = await whole_body(upstream)
        if head.status == 401:
            raise unavailable("The instance refuses the router's key.")
        if not _is_object(body):  # it would make the file of answers unreadable
            if head.status in _REFUSALS:
                raise unavailable("A proxy of the instance has no room for the line.")
            raise UpstreamLostError(f"its answer ({head.status}) is no JSON object")
        return _Reply(link.name, request_id, head, body)

    def _give_up(self, link: InstanceLink, lost: UpstreamLostError) -> None:
        """Send the instance nothing before its next status."""
        self._desk.metrics.retries.labels(link.name).inc()
        if not link.is_lost:  # otherwise it was logged once for all of its lines
            logger.warning("instance %s failed a line of a batch: %s", link.name, lost)
        self._desk.fleets.blame(link.name, lost)

    async def _wait_open(self) -> None:
        """Wait while the router drains: its lines go on at the next start."""
        while self._desk.drain.has_begun:
            await asyncio.sleep(POLL_INTERVAL_S)


def offline_body(body: bytes) -> bytes:
    """The body of a line, marked as offline for the scheduler of an instance.

    `priority` is set instead of `service_tier: flex`, because answers name the tier. Its value
    stays if it is positive already, or if it is no number, which the instance answers with 400.
    """
    fields = _decode_fields(body)
    try:
        priority = msgspec.json.decode(fields.get("priority", b"null"), type=float | None)
    except msgspec.DecodeError:
        return body
    if not priority or priority < 0:
        fields["priority"] = msgspec.Raw(b"1")
    return msgspec.json.encode(fields)


def _is_object(body: bytes) -> bool:
    try:
        _decode_fields(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
