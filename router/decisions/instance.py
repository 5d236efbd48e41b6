"""An instance as the router sees it: its last status, and what the router has sent it since."""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field

from router.decisions.messages import Handler, Kind
from router.decisions.prefix_view import PrefixView
from wire.instance_status import SLACK_QUANTILES, InstanceStatus, PrefillCosts

SETTLE_S = 0.03
"""A status has heard of a request that was sent so many seconds before it arrived: the way there
and back, and the pause between two statuses."""


@dataclass(slots=True)
class Request:
    """An open request.

    It `waits_since` it arrived, or since it was broken off. It `was_sent` to an instance already or
    is new; it was last sent at `sent_at`.
    """

    request_id: int
    num_prompt_tokens: int
    expected_output: int
    kind: Kind
    arrived_at: float
    prefix_keys: tuple[int, ...] = ()
    tokens_per_key: float = 0.0
    num_done: int = 0
    waits_since: float = 0.0
    sent_at: float = -1.0
    instance: str = ""
    was_sent: bool = False
    has_begun: bool = False
    own_s: float = 0.0
    alone_s: float = 0.0

    @property
    def num_to_feed(self) -> int:
        """The prompt, and what is known of the answer."""
        return self.num_prompt_tokens + self.num_done


@dataclass(slots=True)
class Instance:
    """An instance; `open` has the requests that the router has sent it, by id.

    One that `is_lost` cannot be reached; one that `is_suspected` has failed or refused a request.
    The next status ends both.
    """

    handler: Handler
    status: InstanceStatus | None = None
    heard_at: float = float("-inf")
    is_lost: bool = True
    is_suspected: bool = False
    is_leaving: bool = False
    open: dict[int, Request] = field(default_factory=dict)
    prefixes: PrefixView = field(default_factory=PrefixView)
    num_sent: int = 0

    @property
    def name(self) -> str:
        """The name of its handler."""
        return self.handler.name

    def report(self, status: InstanceStatus, now: float, *, begins: bool = False) -> None:
        """Take a status; one that `begins` a stream tells all prefix keys."""
        if begins or self.status is None or self.status.instance != status.instance:
            self.prefixes.begin_anew()
        self.prefixes.tell(status.prefix_added, status.prefix_dropped, now - SETTLE_S)
        self.status, self.heard_at = status, now
        self.is_lost = self.is_suspected = False

    def send(self, request: Request) -> None:
        """Take a request."""
        self.open[request.request_id] = request
        self.num_sent += 1
        self.prefixes.send(request.prefix_keys)

    def end(self, request: Request, now: float) -> bool:
        """Give up a request; whether it was here."""
        if self.open.pop(request.request_id, None) is None:
            return False
        self.prefixes.end(request.prefix_keys, now)
        return True

    def may_serve(self, now: float, stale_after: float) -> bool:
        """Whether it gets requests now."""
        status = self.status
        if status is None or self.is_lost or self.is_suspected or self.is_leaving:
            return False
        if now - self.heard_at > stale_after:
            return False
        return status.ready and not status.draining

    def unheard(self) -> Iterable[Request]:
        """The online requests that the last status cannot have counted yet."""
        since = self.heard_at - SETTLE_S
        return (r for r in self.open.values() if r.sent_at > since and r.kind == "online")

    def num_offline_waiting(self) -> int:
        """Its offline requests from here that have no token yet, as far as the router knows.

        Only a stream tells its first token; of other answers, the status does.
        """
        assert self.status is not None
        offline = [r for r in self.open.values() if r.kind == "offline" and not r.has_begun]
        unheard = sum(r.sent_at > self.heard_at - SETTLE_S for r in offline)
        return min(len(offline), unheard + self.status.promises.num_offline_waiting)

    def cached_tokens(self, request: Request) -> float:
        """How many tokens of the prompt are in its prefix cache, as far as the router knows."""
        number = 0
        for key in request.prefix_keys:
            if key not in self.prefixes:
                break
            number += 1
        return min(number * request.tokens_per_key, max(0, request.num_to_feed - 1))

    def can_hold(self, request: Request) -> bool:
        """Whether its KV cache is large enough for what has to be fed, if nothing else is in it."""
        assert self.status is not None
        kv_tokens = self.status.promises.kv_tokens
        return not kv_tokens or request.num_to_feed <= kv_tokens

    def slot_s(self) -> float:
        """EcoServe's sum: seconds of the prompts that it got since its last prefill slot."""
        assert self.status is not None
        return self.status.promises.slot_prefill_s + sum(r.alone_s for r in self.unheard())

    def pending_s(self, now: float) -> float:
        """Seconds of the prompts that it has yet to feed."""
        assert self.status is not None
        promises = self.status.promises
        left_s = promises.pending_prefill_s - (now - self.heard_at)
        return max(0.0, left_s) + sum(r.own_s for r in self.unheard())

    def mean_slack_s(self, now: float) -> float:
        """The mean slack of its decoding requests; infinite without any."""
        assert self.status is not None
        promises = self.status.promises
        return promises.mean_slack_s - self._lost_s(now) if promises.slack_s else float("inf")

    def slack_s(self, now: float, quantile: float, *, projected: bool) -> float:
        """A quantile of the slack of its decoding requests, or of that at their end."""
        assert self.status is not None
        promises = self.status.promises
        values = promises.projected_slack_s if projected else promises.slack_s
        if not values:
            return float("inf")
        return values[bisect_left(SLACK_QUANTILES, quantile)] - self._lost_s(now)

    def turn_s(self) -> float:
        """Seconds between two tokens, if it also decodes what it was sent since its status."""
        assert self.status is not None
        promises = self.status.promises
        more = promises.num_waiting + sum(1 for _ in self.unheard())
        return promises.turn_s + promises.turn_s_per_row * more

    def free_kv_tokens(self) -> float:
        """KV tokens for online requests that are neither used nor promised."""
        assert self.status is not None
        promises = self.status.promises
        unheard = sum(r.num_to_feed for r in self.unheard())
        return promises.free_kv_tokens + promises.offline_kv_tokens - unheard

    def _lost_s(self, now: float) -> float:
        """For how long its decoding requests may have got no token since the status."""
        assert self.status is not None
        return now - self.heard_at if self.status.promises.phase == "prefill" else 0.0


def alone_s(costs: PrefillCosts, num_tokens: float) -> float:
    """Seconds of the slowest stage for a prompt that is fed alone; 0 without costs."""
    xs, ys = costs.num_tokens, costs.seconds
    if not xs or num_tokens <= 0:
        return 0.0
    i = bisect_left(xs, num_tokens)
    if i == 0:
        return ys[0]
    if i == len(xs):
        return ys[-1] * num_tokens / xs[-1]
    share = (num_tokens - xs[i - 1]) / (xs[i] - xs[i - 1])
    return ys[i - 1] + share * (ys[i] - ys[i - 1])


def among_others_s(costs: PrefillCosts, num_tokens: float, num_cached: float = 0.0) -> float:
    """Seconds of the slowest stage for the rest of a prompt that is fed among others."""
    left = num_tokens - num_cached
    pairs = left * (left + 1) / 2 + left * num_cached
    return left * costs.token_s + pairs * costs.pair_s
