"""The adaptive rule: EcoServe's checks, with what an instance knows beyond them.

The TTFT check counts the seconds that the request has waited already, and of the prompts before it
only those that are left. The TPOT check takes a low quantile of the slack that decoding requests
are expected to have at their end, instead of the mean of what they have now: a request that has
only begun has no slack yet, but will have. Requests that will miss the target whatever happens do
not count: others would wait for them for nothing. A second one asks whether the instance, with this
request, still decodes within the target: nothing could be saved otherwise. The KV check counts
predicted answers. Of the instances that pass, the one gets the request where its first token comes
soonest, and where its prefill, less with a cached prefix, takes the least from others. Without a
TPOT target, nothing of this tells how many requests an instance decodes: then the one with the
fewest open requests gets it, unless the rule `prefix` prefers another one.

A request that has missed its TTFT target cannot be helped by waiting. The router tries others first
(`hopeless_last`), and late ones get what they leave over: an instance takes one while it would feed
a prompt that comes next within `LATE_SHARE` of the target. Without this bound, late requests fill
every instance's queue as soon as no other one waits, and those that come next are late as well:
after an overload, that went on until the last late one had been served.
"""

from collections.abc import Sequence

from configs.schema.router import RoutingConfig
from router.decisions.instance import Instance, Request, among_others_s
from router.decisions.routing.simple import LeastLoaded, PrefixAffine

IN_TIME = 0.8
"""Share of the TTFT target that waiting and prefill may take, by estimate."""
LATE_SHARE = 0.25
"""Share of the TTFT target that the prompts before a late request may take."""
OFFLINE_SLACK = 0.5
"""Offline requests are sent while the slack exceeds this share of the TTFT target."""


class Adaptive:
    """Routes by targets, slack, predicted lengths and prefix caches."""

    look_ahead = 8

    def __init__(self, config: RoutingConfig) -> None:
        self._config = config
        self.hopeless_after = IN_TIME if config.hopeless_last else None
        self._balancing = PrefixAffine() if config.prefix_affinity else LeastLoaded()
        self._uses_mean = config.slack_quantile == "mean"
        self._quantile = 0.0 if self._uses_mean else float(config.slack_quantile)

    def choose(self, request: Request, members: Sequence[Instance], now: float) -> Instance | None:
        """See `Rule.choose`."""
        fitting = [i for i in members if self._admits(i, request, now)]
        if not fitting:
            return None
        if not any(map(_tpot_slo, fitting)):
            return self._balancing.choose(request, fitting, now)
        return min(fitting, key=lambda instance: self._delay_s(instance, request, now))

    def _admits(self, instance: Instance, request: Request, now: float) -> bool:
        status = instance.status
        assert status is not None
        if request.kind == "offline":
            return self._has_room_for_offline(instance, request, now)
        prefill_s = instance.pending_s(now) + self._own_s(instance, request)
        if not self._keeps_ttft(instance, request, prefill_s, now):
            return not instance.open
        tpot_slo = _tpot_slo(instance)
        if tpot_slo:
            if self._slack_s(instance, now) < prefill_s:
                return False
            if instance.turn_s() > tpot_slo and instance.open:
                return False
        return self._kv_tokens(request, instance) <= instance.free_kv_tokens() or not instance.open

    def _keeps_ttft(
        self, instance: Instance, request: Request, prefill_s: float, now: float
    ) -> bool:
        """Whether the request meets its target; or if it is late, whether the next ones can."""
        status = instance.status
        assert status is not None
        if not status.ttft_slo or request.num_done:  # its client has a part of the answer
            return True
        stretch = status.promises.prefill_stretch
        waited_s, in_time_s = now - request.arrived_at, IN_TIME * status.ttft_slo
        if waited_s < in_time_s:
            return waited_s + prefill_s * stretch <= in_time_s
        before_s = instance.pending_s(now) * stretch
        return not self._config.hopeless_last or before_s <= LATE_SHARE * status.ttft_slo

    def _has_room_for_offline(self, instance: Instance, request: Request, now: float) -> bool:
        """Whether targets leave something over, and the offline requests before it have begun."""
        status = instance.status
        assert status is not None
        promises = status.promises
        if instance.num_offline_waiting() >= max(1, promises.num_offline // 2):
            return False
        tpot_slo = _tpot_slo(instance)
        if tpot_slo and instance.turn_s() > tpot_slo and instance.open:
            return False
        spare_s = OFFLINE_SLACK * status.ttft_slo
        if status.ttft_slo and instance.pending_s(now) > spare_s:
            return False
        if tpot_slo and (self._slack_s(instance, now) < spare_s or instance.mean_slack_s(now) < 0):
            return False
        return self._kv_tokens(request, instance) <= promises.free_kv_tokens or not instance.open

    def _own_s(self, instance: Instance, request: Request) -> float:
        assert instance.status is not None
        cached = instance.cached_tokens(request) if self._config.prefix_affinity else 0.0
        return among_others_s(instance.status.promises.costs, request.num_to_feed, cached)

    def _delay_s(self, instance: Instance, request: Request, now: float) -> float:
        """Seconds until its first token, and as many as its prefill takes from others."""
        return instance.pending_s(now) + 2 * self._own_s(instance, request)

    def _slack_s(self, instance: Instance, now: float) -> float:
        if self._uses_mean:
            return instance.mean_slack_s(now)
        return instance.slack_s(now, self._quantile, projected=self._config.predicted_lengths)

    def _kv_tokens(self, request: Request, instance: Instance) -> int:
        """What it will hold; what is expected of its answer counts only if it can be held."""
        more = request.expected_output if self._config.predicted_lengths else 0
        wanted = request.num_prompt_tokens + max(request.num_done, more)
        assert instance.status is not None
        kv_tokens = instance.status.promises.kv_tokens
        return request.num_to_feed if 0 < kv_tokens < wanted else wanted


def _tpot_slo(instance: Instance) -> float:
    """Its target in seconds; 0 without one, or if even a request alone in it would miss the target.

    Requests that wait for slack that cannot come would miss both targets.
    """
    assert instance.status is not None
    target_s = instance.status.tpot_slo
    return target_s if instance.status.promises.lone_turn_s <= target_s else 0.0
