"""The core of the router: `handle(event, now) -> decisions`, without I/O.

It uses no socket, no clock and no random numbers: the same events at the same times give the same
decisions in production, in the simulator and in replay.

Invariants, checked by tests/router/test_core_laws.py:
  every Arrived and every Broken is followed by exactly one Route or Refuse, unless the request
  ends before; no request waits longer than `max_pending_time` while an instance serves, nor than
  `no_instance_timeout` while none does;
  offline requests do not take the last places of the queue from online ones, nor their turn;
  every instance that joined is in exactly one macro instance until it is removed;
  an instance that leaves is removed as soon as it has no open requests, and no sooner.
"""

from configs.schema.router import RouterCoreConfig
from router.decisions.instance import Instance, Request, alone_s, among_others_s
from router.decisions.macro_instances import MacroInstances
from router.decisions.messages import (
    Arrived,
    Began,
    Broken,
    Decision,
    Ended,
    Event,
    Grow,
    InstanceEvent,
    Joined,
    Leaving,
    Lost,
    RefusalCode,
    Refuse,
    Removed,
    Reported,
    Route,
    Shrink,
    Suspected,
    Ticked,
)
from router.decisions.pending import PendingQueue
from router.decisions.routing.registry import make_rule
from router.decisions.routing.simple import load
from router.decisions.scaling import ScalingSignals

OFFLINE_SHARE = 0.75
"""Share of the places of waiting requests that offline ones may take."""


class RouterCore:
    """Routes requests to instances, which it groups in macro instances."""

    def __init__(self, config: RouterCoreConfig) -> None:
        self.config = config
        self.macros = MacroInstances(config.routing.macro_lower, config.routing.macro_upper)
        self.instances: dict[str, Instance] = {}
        self.pending = PendingQueue()
        self._requests: dict[int, Request] = {}
        self._rule = make_rule(config.routing)
        self._signals = ScalingSignals(config.scaling)
        self._served_at = float("-inf")
        """When there was an instance for a waiting request last."""

    def handle(self, event: Event, now: float) -> list[Decision]:
        """Process one event and return the decisions; `now` is in seconds and monotonic."""
        out: list[Decision] = []
        match event:
            case Arrived():
                self._arrive(event, now, out)
            case Began():
                self._begin(event, now)
            case Ended():
                self._end(event.request_id, now, out)
            case Broken():
                self._break(event, now, out)
            case Ticked():
                self._scale(now, out)
            case _:
                self._note(event, now, out)
        self._route_pending(now, out)
        return out

    def _note(self, event: InstanceEvent, now: float, out: list[Decision]) -> None:
        """Process an event of an instance."""
        match event:
            case Joined():
                self._join(event)
            case Leaving():
                self._leave(event.name, out)
            case Lost():
                self._lose(event, out)
            case Suspected():
                self._suspect(event.name)
            case Reported():
                self._report(event, now)

    def serving(self, now: float) -> list[Instance]:
        """The instances that get requests at `now`."""
        stale_after = self.config.routing.stale_after
        return [i for i in self.instances.values() if i.may_serve(now, stale_after)]

    def load(self, now: float) -> float | None:
        """See `scaling`; None without instances, or without targets that can be met."""
        serving = self.serving(now)
        load = self._signals.load(serving, now)
        return None if load is None else load.of(len(serving))

    def _join(self, joined: Joined) -> None:
        name = joined.handler.name
        if name not in self.instances:
            self.instances[name] = Instance(joined.handler)
            self.macros.add(joined.handler)
        self.instances[name].is_leaving = False

    def _leave(self, name: str, out: list[Decision]) -> None:
        instance = self.instances.get(name)
        if instance is not None:
            instance.is_leaving = True
            self._remove_if_drained(instance, out)

    def _remove_if_drained(self, instance: Instance, out: list[Decision]) -> None:
        if instance.is_leaving and not instance.open:
            del self.instances[instance.name]
            self.macros.remove(instance.name)
            out.append(Removed(instance.name))

    def _lose(self, lost: Lost, out: list[Decision]) -> None:
        instance = self.instances.get(lost.name)
        if instance is None:
            return
        instance.is_lost = True
        if lost.is_gone:
            self._leave(lost.name, out)

    def _suspect(self, name: str) -> None:
        instance = self.instances.get(name)
        if instance is not None:
            instance.is_suspected = True

    def _report(self, reported: Reported, now: float) -> None:
        instance = self.instances.get(reported.name)
        if instance is not None:
            instance.report(reported.status, now, begins=reported.begins)

    def _arrive(self, arrived: Arrived, now: float, out: list[Decision]) -> None:
        most = self.config.routing.max_pending
        is_full = len(self.pending) >= most
        if arrived.kind == "offline":
            is_full |= self.pending.num_offline >= max(1, int(OFFLINE_SHARE * most))
        if is_full and not arrived.was_sent:
            out.append(Refuse(arrived.request_id, "queue_full"))
            return
        request = Request(
            arrived.request_id,
            arrived.num_prompt_tokens,
            arrived.expected_output,
            arrived.kind,
            now - arrived.age_s,
            arrived.prefix_keys,
            arrived.tokens_per_key,
            arrived.num_done,
            waits_since=now - arrived.waited_s,
            was_sent=arrived.was_sent,
            has_begun=arrived.num_done > 0,
        )
        self._requests[request.request_id] = request
        self.pending.add(request)

    def _begin(self, began: Began, now: float) -> None:
        request = self._requests.get(began.request_id)
        if request is not None and not request.has_begun:
            request.has_begun = True
            if request.kind == "online":
                self._signals.observe_first_token(now - request.arrived_at, now)

    def _end(self, request_id: int, now: float, out: list[Decision]) -> None:
        request = self._requests.pop(request_id, None)
        if request is not None:
            self.pending.remove(request)
            self._take_from_instance(request, now, out)

    def _break(self, broken: Broken, now: float, out: list[Decision]) -> None:
        """Let a request wait for another instance. Its former one may be gone already."""
        request = self._requests.get(broken.request_id)
        if request is None:
            return
        self._take_from_instance(request, now, out)
        request.num_done, request.waits_since = broken.num_done, now
        self.pending.add(request)

    def _take_from_instance(self, request: Request, now: float, out: list[Decision]) -> None:
        instance = self.instances.get(request.instance)
        if instance is not None and instance.end(request, now):
            self._remove_if_drained(instance, out)

    def _route_pending(self, now: float, out: list[Decision]) -> None:
        """Route the waiting requests that an instance can take now."""
        serving = self.serving(now) if len(self.pending) else []
        target_s = max((i.status.ttft_slo for i in serving if i.status), default=0.0)
        if target_s and self._rule.hopeless_after is not None:
            self.pending.give_up_hope(now - self._rule.hopeless_after * target_s)
        self._end_long_waits(serving, now, out)
        num_failed, routed = 0, []
        for request in self.pending:
            chosen = self._choose(request, serving, now) if serving else None
            if chosen is None and serving and not any(i.can_hold(request) for i in serving):
                # It would wait in vain: the instance refuses it, if the estimate was right.
                chosen = min(serving, key=load)
            if chosen is not None:
                routed.append(request)
                self._send(request, chosen, now, out)
                continue
            num_failed += 1
            if num_failed > self._rule.look_ahead:
                break
        for request in routed:
            self.pending.remove(request)

    def _end_long_waits(self, serving: list[Instance], now: float, out: list[Decision]) -> None:
        """Route what has waited too long to the least loaded instance.

        An offline request that was never sent is refused instead: the targets of online ones have
        left nothing over for it. Without any instance, refuse what nothing could be done for
        within `no_instance_timeout`.
        """
        routing = self.config.routing
        if serving:
            self._served_at = now
            for request in self.pending.waiting_since_before(now - routing.max_pending_time):
                chosen: Instance | None = min(serving, key=load)
                if request.kind == "offline" and not request.was_sent:
                    chosen = self._choose(request, serving, now)
                if chosen is None:
                    self._refuse(request, "no_spare_time", out)
                else:
                    self.pending.remove(request)
                    self._send(request, chosen, now, out)
        elif now - self._served_at > routing.no_instance_timeout:
            for request in self.pending.waiting_since_before(now - routing.no_instance_timeout):
                self._refuse(request, "no_instance", out)

    def _refuse(self, request: Request, code: RefusalCode, out: list[Decision]) -> None:
        self.pending.remove(request)
        del self._requests[request.request_id]
        out.append(Refuse(request.request_id, code))

    def _choose(self, request: Request, serving: list[Instance], now: float) -> Instance | None:
        """Ask the macro instances, the one with the fewest open requests per member first."""
        by_name = {instance.name: instance for instance in serving}
        macros = []
        for macro in self.macros:
            members = [by_name[h.name] for h in macro.in_turn() if h.name in by_name]
            if members:
                macros.append((sum(len(i.open) for i in members) / len(members), macro, members))
        for _, macro, members in sorted(macros, key=lambda each: (each[0], each[1].number)):
            chosen = self._rule.choose(request, members, now)
            if chosen is not None:
                macro.use(chosen.name)
                return chosen
        return None

    def _send(self, request: Request, instance: Instance, now: float, out: list[Decision]) -> None:
        assert instance.status is not None
        costs = instance.status.promises.costs
        cached = instance.cached_tokens(request)
        request.instance, request.sent_at, request.was_sent = instance.name, now, True
        request.own_s = among_others_s(costs, request.num_to_feed, cached)
        request.alone_s = alone_s(costs, request.num_to_feed)
        instance.send(request)
        if request.kind == "online":
            self._signals.observe_prefill(request.own_s, now)
        out.append(Route(request.request_id, instance.name))

    def _scale(self, now: float, out: list[Decision]) -> None:
        serving = self.serving(now)
        self._signals.observe_kv(serving, now)
        oldest = self.pending.oldest()
        waited_s = now - oldest.waits_since if oldest is not None else 0.0
        num_staying = sum(not i.is_leaving for i in self.instances.values())
        change = self._signals.change(serving, num_staying, waited_s, now)
        if change > 0:
            out.append(Grow())
        elif change < 0:
            self._shrink(serving, out)

    def _shrink(self, serving: list[Instance], out: list[Decision]) -> None:
        """Offer the members of the macro instance that shrinks next, the least loaded one first."""
        macro = self.macros.to_shrink()
        names = {handler.name for handler in macro.members} if macro else set()
        idle = sorted((i for i in serving if i.name in names), key=load)
        if idle:
            out.append(Shrink(tuple(instance.name for instance in idle)))
