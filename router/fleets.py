"""Fleets: instances that serve the same models, each fleet with a core that routes its requests.

Fleets may share a model, if only some of its instances have another one or an alias beside it. A
request goes to the fleet with the fewest open requests per instance, and moves to another one if
its own has no instance left.

This is where the decisions of the cores become effects: it reads the clock, writes the journal, and
wakes the requests that were routed.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from router.decisions.messages import (
    Arrived,
    Began,
    Broken,
    Decision,
    Ended,
    Event,
    Grow,
    Handler,
    Joined,
    Leaving,
    Lost,
    Refuse,
    Removed,
    Reported,
    Route,
    Shrink,
    Suspected,
    Ticked,
)
from router.inquiry import Inquiry
from router.journal import Core, Journal
from router.monitoring.metrics import Metrics
from router.ticket import Ticket
from router.upstream.connection import NoSocketError, UnreachableError, UpstreamLostError
from router.upstream.instance_link import InstanceLink
from server.http.errors import ApiError, no_such_model, too_busy, unavailable
from wire.instance_status import InstanceStatus

logger = logging.getLogger("tdpipe")


class Scaler(Protocol):
    """Takes the decisions of the cores about the number of instances; it returns at once."""

    def grow(self) -> None:
        """Start another instance."""

    def choose(self, names: Sequence[str]) -> str | None:
        """The instance that may leave, of these in the order of preference; None if none may."""

    def remove(self, name: str) -> None:
        """Stop an instance that has no open requests any more."""


class Fleet:
    """Instances with the same models, and their core; `tickets` are the open requests by id.

    `models` are in the order of the first instance.
    """

    def __init__(self, number: int, models: tuple[str, ...], core: Core) -> None:
        self.number, self.models, self.core = number, models, core
        self.links: dict[str, InstanceLink] = {}
        self.tickets: dict[int, Ticket] = {}

    @property
    def num_up(self) -> int:
        """The number of instances that take requests."""
        return sum(link.is_up for link in self.links.values())

    def break_off(self, link: InstanceLink, reason: str) -> None:
        """Close the connections of all requests that the instance is answering."""
        for ticket in [each for each in self.tickets.values() if each.link is link]:
            ticket.break_off(reason)


@dataclass(slots=True)
class _Open:
    """An open request, and the fleet that has it now; it `waits_since` it was broken off last."""

    ticket: Ticket
    inquiry: Inquiry
    fleet: Fleet
    waits_since: float
    num_done: int = 0


class Fleets:
    """All instances and open requests of the router; `num_requests` is that of all so far.

    An instance that has not told its models within `patience_s` is not waited for any more if a
    model is asked for that no other instance has.
    """

    def __init__(
        self,
        make_core: Callable[[], Core],
        metrics: Metrics,
        scaler: Scaler,
        journal: Journal | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience_s: float = 60.0,
    ) -> None:
        self._patience_s = patience_s
        self._make_core, self._metrics, self._scaler = make_core, metrics, scaler
        self._journal, self._clock = journal, clock
        self.links: dict[str, InstanceLink] = {}
        self._fleets: list[Fleet] = []
        self._of_instance: dict[str, Fleet] = {}
        self._open: dict[int, _Open] = {}
        self._num_fleets = self.num_requests = 0

    # --- instances --------------------------------------------------------------------------------

    def add(self, link: InstanceLink) -> None:
        """Take an instance in; it gets requests after its first status."""
        link.known_since = self._clock()
        self.links[link.name] = link
        self._metrics.add_instance(link.name)

    def report(self, name: str, status: InstanceStatus, *, begins: bool = False) -> None:
        """Take the status of an instance; it may be the one that `begins` a stream."""
        link = self.links.get(name)
        if link is None:
            return
        fleet = self._of_instance.get(name)
        if fleet is None or set(fleet.models) != set(status.models):
            self._leave_fleet(link)
            fleet = self._join_fleet(link, status.models)
        if link.is_released:
            self._handle(fleet, Joined(Handler(name)))
        if not link.is_up and not link.is_leaving and link.would_serve(status):
            logger.info("instance %s serves %s", name, ", ".join(status.models))
        link.report(status)
        self._metrics.is_up.labels(name).set(link.is_up)
        self._handle(fleet, Reported(name, status, begins))

    def lose(self, name: str, reason: str) -> None:
        """Give up on an instance until its next status: its open requests go on elsewhere."""
        link = self.links.get(name)
        if link is None or link.is_lost:
            return
        logger.warning("instance %s is lost: %s", name, reason)
        link.lose(reason)
        self._metrics.is_up.labels(name).set(0)
        self._metrics.losses.labels(name).inc()
        fleet = self._of_instance.get(name)
        if fleet is not None:
            self._handle(fleet, Lost(name))
            fleet.break_off(link, f"instance {name} is lost: {reason}")

    def blame(self, name: str, error: UpstreamLostError) -> None:
        """Draw the conclusions about an instance from the failure of one request."""
        if isinstance(error, UnreachableError):
            self.lose(name, str(error))
        elif not isinstance(error, NoSocketError):
            self.suspect(name)

    def suspect(self, name: str) -> None:
        """Send an instance that has failed or refused a request nothing before its next status."""
        fleet = self._of_instance.get(name)
        if fleet is not None:
            self._handle(fleet, Suspected(name))

    def leave(self, name: str) -> None:
        """Give an instance no new requests, and remove it when its open ones have ended."""
        link, fleet = self.links.get(name), self._of_instance.get(name)
        if link is None:
            return
        link.is_leaving = True
        self._metrics.is_up.labels(name).set(0)
        if fleet is not None:
            self._handle(fleet, Leaving(name))
        else:
            self._drop(link)
            self._scaler.remove(name)

    def release(self, name: str) -> None:
        """Leave an instance to other routers; its open requests are answered to their end."""
        link, fleet = self.links[name], self._of_instance.get(name)
        logger.info("instance %s is left to other routers", name)
        link.release()
        self._metrics.is_up.labels(name).set(0)
        if fleet is not None:
            self._handle(fleet, Leaving(name))

    def forget(self, name: str) -> None:
        """Forget an instance that does not exist any more."""
        self.lose(name, "it has been stopped")
        link = self.links.get(name)
        if link is not None:
            self._leave_fleet(link)
            self._drop(link)

    def tick(self) -> None:
        """Tell the cores that time has passed; call this four times a second."""
        for fleet in self._fleets:
            self._handle(fleet, Ticked())
            self._metrics.show_load(fleet.models, fleet.core.load(self._clock()))
        for each in list(self._open.values()):
            if each.ticket.link is None and not each.fleet.num_up:
                self._move(each)
        self._fleets = [each for each in self._fleets if each.links or each.tickets]

    # --- requests ---------------------------------------------------------------------------------

    @contextmanager
    def open(self, inquiry: Inquiry) -> Iterator[Ticket]:
        """Let a request be routed inside the block. Raises `ApiError` (404, 503)."""
        fleet = self._fleet_for(inquiry.model)
        self.num_requests += 1
        is_online = inquiry.kind == "online"
        ticket = Ticket(self.num_requests, self._clock(), is_online=is_online)
        opened = _Open(ticket, inquiry, fleet, ticket.arrived_at)
        self._open[ticket.request_id] = opened
        fleet.tickets[ticket.request_id] = ticket
        ticket.on_broken = lambda num_done: self._break(opened, num_done)
        ticket.on_began = lambda: self._handle(opened.fleet, Began(ticket.request_id))
        self._metrics.pending.inc()
        try:
            self._handle(fleet, _arrived(opened, ticket.arrived_at))
            yield ticket
        finally:
            del self._open[ticket.request_id]
            del opened.fleet.tickets[ticket.request_id]
            self._unroute(ticket)
            self._metrics.pending.dec()
            self._handle(opened.fleet, Ended(ticket.request_id))

    @property
    def num_open(self) -> int:
        """The requests that wait for an instance, or have one."""
        return len(self._open)

    def fail_all(self, message: str) -> None:
        """End all open requests with an error."""
        for ticket in self.tickets():
            ticket.fail(unavailable(message, "shutting_down"))

    def tickets(self) -> list[Ticket]:
        """All open requests."""
        return [each.ticket for each in self._open.values()]

    @property
    def num_pending(self) -> int:
        """The number of open requests without an instance."""
        return sum(ticket.link is None for ticket in self.tickets())

    def any_up(self, model: str | None = None) -> InstanceLink | None:
        """Of the instances that take requests, the one with the fewest open ones, or None.

        It has the `model`, if any of them does.
        """
        up = [link for link in self.links.values() if link.is_up]
        with_model = [link for link in up if link.status and model in link.status.models]
        return min(with_model or up, key=lambda link: link.num_open, default=None)

    def _fleet_for(self, model: str | None) -> Fleet:
        """The fleet that serves a model; None is any. Raises `ApiError` (404, 503)."""
        fleets = [
            each for each in self._fleets if each.links and (model is None or model in each.models)
        ]
        if fleets:
            return min(fleets, key=_load)
        since = self._clock() - self._patience_s
        may_come = any(
            link.status is None and link.known_since > since for link in self.links.values()
        )
        has_any = any(link.status is not None for link in self.links.values())
        if model is None or not has_any or may_come:
            raise unavailable("No instance is ready. Please retry shortly.", "no_instance")
        raise no_such_model(model)

    def _break(self, opened: _Open, num_done: int) -> None:
        self._unroute(opened.ticket)
        opened.waits_since, opened.num_done = self._clock(), num_done
        self._handle(opened.fleet, Broken(opened.ticket.request_id, num_done))

    def _move(self, opened: _Open) -> None:
        """Let a request wait in another fleet that serves its model, if one has an instance."""
        model, ticket = opened.inquiry.model, opened.ticket
        others = [
            each for each in self._fleets if each.num_up and (model is None or model in each.models)
        ]
        if not others or ticket.error is not None:
            return
        del opened.fleet.tickets[ticket.request_id]
        self._handle(opened.fleet, Ended(ticket.request_id))
        opened.fleet = min(others, key=_load)
        opened.fleet.tickets[ticket.request_id] = ticket
        self._handle(opened.fleet, _arrived(opened, self._clock()))

    def _unroute(self, ticket: Ticket) -> None:
        link, ticket.link = ticket.link, None
        if link is not None:
            link.num_open -= 1
            self._metrics.pending.inc()
            self._count_open(link)

    def _count_open(self, link: InstanceLink) -> None:
        if link.name in self.links:  # otherwise it has been forgotten
            self._metrics.open_requests.labels(link.name).set(link.num_open)

    # --- decisions --------------------------------------------------------------------------------

    def _handle(self, fleet: Fleet, event: Event) -> None:
        now = self._clock()
        decisions = fleet.core.handle(event, now)
        if self._journal is not None:
            self._journal.write(fleet.number, event, now, decisions)
        for decision in decisions:
            self._apply(fleet, decision)

    def _apply(self, fleet: Fleet, decision: Decision) -> None:
        match decision:
            case Route(request_id, name):
                self._route(fleet.tickets[request_id], self.links[name])
            case Refuse(request_id, code):
                fleet.tickets[request_id].fail(_refusal(code))
            case Removed(name):
                self._remove(fleet, name)
            case Grow():
                self._scaler.grow()
            case Shrink(names):
                self._shrink(names)

    def _route(self, ticket: Ticket, link: InstanceLink) -> None:
        if ticket.is_online and not ticket.was_routed:
            self._metrics.wait.observe(self._clock() - ticket.arrived_at)
        link.num_open += 1
        self._metrics.pending.dec()
        self._count_open(link)
        ticket.route(link)

    def _shrink(self, names: Sequence[str]) -> None:
        """Let one of these instances leave, if the platform can stop any of them."""
        chosen = self._scaler.choose(names)
        if chosen is not None:
            logger.info("instance %s gets no new requests: fewer are enough", chosen)
            self.leave(chosen)

    def _join_fleet(self, link: InstanceLink, models: tuple[str, ...]) -> Fleet:
        fleet = next((each for each in self._fleets if set(each.models) == set(models)), None)
        if fleet is None:
            fleet = Fleet(self._num_fleets, models, self._make_core())
            self._num_fleets += 1
            self._fleets.append(fleet)
        fleet.links[link.name] = link
        self._of_instance[link.name] = fleet
        self._handle(fleet, Joined(Handler(link.name)))
        return fleet

    def _leave_fleet(self, link: InstanceLink) -> None:
        fleet = self._of_instance.pop(link.name, None)
        if fleet is None:
            return
        del fleet.links[link.name]
        self._handle(fleet, Lost(link.name, is_gone=True))
        fleet.break_off(link, f"instance {link.name} serves other models now")
        if not fleet.links:
            self._metrics.show_load(fleet.models, None)
        self._fleets = [each for each in self._fleets if each.links or each.tickets]

    def _remove(self, fleet: Fleet, name: str) -> None:
        """Drop an instance that has drained, unless it has left this fleet otherwise."""
        if self._of_instance.get(name) is not fleet:
            return
        del self._of_instance[name]
        link = fleet.links.pop(name)
        if link.is_released:
            return
        logger.info("instance %s has no open requests and is removed", name)
        self._drop(link)
        self._scaler.remove(name)

    def _drop(self, link: InstanceLink) -> None:
        self.links.pop(link.name, None)
        self._metrics.forget(link.name)
        link.close()


def _arrived(opened: _Open, now: float) -> Arrived:
    ticket, inquiry = opened.ticket, opened.inquiry
    return Arrived(
        ticket.request_id,
        inquiry.num_prompt_tokens,
        inquiry.expected_output,
        inquiry.kind,
        inquiry.prefix_keys,
        inquiry.tokens_per_key,
        now - ticket.arrived_at,
        now - opened.waits_since,
        ticket.was_routed,
        opened.num_done,
    )


def _load(fleet: Fleet) -> tuple[bool, float]:
    """What orders fleets: those without an instance that takes requests come last."""
    num_up = fleet.num_up
    return not num_up, len(fleet.tickets) / max(1, num_up)


def _refusal(code: str) -> ApiError:
    if code == "queue_full":
        return too_busy("Too many requests are waiting. Please retry shortly.", code)
    if code == "no_spare_time":
        message = "The instances have no time to spare for requests of low priority."
        return too_busy(message, code)
    message = "No instance could take the request in time. Please retry shortly."
    return unavailable(message, code)
