"""Scaling signals: whether the router wants an instance more or fewer.

Those of EcoServe (arXiv 2504.18154, section 3.5): one more, if the mean time to the first token of
the last `scale_window` seconds exceeds its target; one fewer, if the mean slack of all decoding
requests exceeds T x (n + 1) / n, where T is the target and n the number of instances. The first
one comes when most requests are late already. The second one does not tell whether the others can
take the load: requests that decode at half of their target have saved more than T after T seconds.

The load tells both: it is that of time or that of memory, whichever is higher. In each turn of
decoding, an instance has the TPOT target for two things: rows, and prefill beside them. What a turn
with one row takes is lost in any case.

  time(m) = (P / m + more(G x tpot / m) / tpot) / (1 - lone / tpot)
  memory(m) = K / (m x C)

P are the seconds of prefill that arrive in a second; G the tokens that are generated in a second,
so G x tpot / m the requests that each of m instances decodes if they take as long as they may;
lone the seconds of a turn with one of them, and more(r) how many seconds the others add. K are the
most tokens of KV that online requests have held within `scale_window`, C those that an instance
has. At 1, one of the targets is missed, or a request has to wait for KV. One instance more, if the
load exceeds `FULL`; one fewer, if the load of the others would stay below `SPARE`. Without a TPOT
target, or with one that even a request alone would miss, the signals are those of the paper.

Between two changes there are `scale_cooldown` seconds.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema.scaling import ScalingConfig
from router.decisions.instance import Instance

FULL, SPARE = 0.9, 0.75
"""What arrives while another instance starts must fit as well; and the load varies."""
LEAST_DECODE_SHARE = 0.1
"""Of the time; the rest is prefill, which may be more than all of it for a moment."""


class ScalingSignals:
    """Observes requests, and judges the number of instances."""

    def __init__(self, config: ScalingConfig) -> None:
        self._config = config
        self._ttft_s = _Window(config.scale_window)
        self._prefill_s = _Window(config.scale_window)
        self._kv_instances = _Window(config.scale_window)
        self._next_at = float("-inf")

    def observe_first_token(self, ttft_s: float, now: float) -> None:
        """An online request has got its first token after so many seconds."""
        self._ttft_s.add(ttft_s, now)

    def observe_prefill(self, seconds: float, now: float) -> None:
        """An online request was sent, which takes so many seconds of an instance to prefill."""
        self._prefill_s.add(seconds, now)

    def observe_kv(self, serving: Sequence[Instance], now: float) -> None:
        """Note how much KV is held now."""
        self._kv_instances.add(_kv_instances(serving), now)

    def load(self, serving: Sequence[Instance], now: float) -> "Load | None":
        """The load of these instances; None without a TPOT target that can be met."""
        kv_instances = max(_kv_instances(serving), self._kv_instances.largest(now))
        return Load.of_serving(serving, self._prefill_s.rate(now), kv_instances)

    def change(
        self, serving: Sequence[Instance], num_instances: int, waited_s: float, now: float
    ) -> int:
        """1 for an instance more, -1 for one fewer, 0 for none; `waited_s` is the longest wait.

        There are `num_instances`, which need not all be serving now.
        """
        if self._config.actuator == "fixed" or now < self._next_at or not serving:
            return 0
        ttft_slo = max((i.status.ttft_slo for i in serving if i.status), default=0.0)
        if not ttft_slo:
            return 0
        load = self.load(serving, now) if self._config.scale_signal == "load" else None
        change = 0
        if num_instances < self._config.max_instances:
            is_late = max(self._ttft_s.mean(now), waited_s) > ttft_slo
            is_full = load is not None and load.of(num_instances) > FULL
            change = int(is_late or is_full)
        num_left = min(num_instances, len(serving)) - 1
        if not change and num_left >= max(1, self._config.min_instances) and not waited_s:
            if load is None:
                change = -_has_slack(serving, ttft_slo, now)
            else:
                change = -(load.of(num_left) < SPARE)
        if change:
            self._next_at = now + self._config.scale_cooldown
        return change


@dataclass(frozen=True, slots=True)
class Load:
    """What online requests take of instances: `prefill_s` seconds of prefill in each second, and
    `num_rows` requests in each turn, if each token takes the TPOT target.

    A row takes `s_per_row` seconds of a turn, and one alone `lone_turn_s`. The most KV that
    was held within the window fills that of `kv_instances` instances.
    """

    prefill_s: float
    num_rows: float
    s_per_row: float
    lone_turn_s: float
    tpot_slo: float
    kv_instances: float

    @classmethod
    def of_serving(
        cls, serving: Sequence[Instance], prefill_s: float, kv_instances: float
    ) -> "Load | None":
        """That of these instances; None without a TPOT target that can be met."""
        statuses = [i.status for i in serving if i.status and i.status.tpot_slo]
        if not statuses:
            return None
        tpot_slo = max(status.tpot_slo for status in statuses)
        promises = [status.promises for status in statuses]
        lone_turn_s = _mean([p.lone_turn_s for p in promises])
        if lone_turn_s >= tpot_slo:
            return None
        decoding = [p for p in promises if p.num_decoding]
        decode_share = max(LEAST_DECODE_SHARE, 1 - prefill_s / len(serving))
        num_rows = sum(
            p.num_decoding * tpot_slo * decode_share / max(p.turn_s, p.lone_turn_s)
            for p in decoding
            if p.turn_s > 0
        )
        s_per_row = _mean([p.turn_s_per_row for p in decoding])
        return cls(prefill_s, num_rows, s_per_row, lone_turn_s, tpot_slo, kv_instances)

    def of(self, num_instances: int) -> float:
        """The part of what so many instances can do within the targets."""
        more_s = self.s_per_row * max(0.0, self.num_rows / num_instances - 1)
        taken = self.prefill_s / num_instances + more_s / self.tpot_slo
        time_load = taken / (1 - self.lone_turn_s / self.tpot_slo)
        return max(time_load, self.kv_instances / num_instances)


def _kv_instances(serving: Sequence[Instance]) -> float:
    """How many instances the KV of online requests would fill."""
    promises = [i.status.promises for i in serving if i.status and i.status.promises.kv_tokens]
    shares = [1 - (p.free_kv_tokens + p.offline_kv_tokens) / p.kv_tokens for p in promises]
    return sum(max(0.0, share) for share in shares)


def _has_slack(serving: Sequence[Instance], ttft_slo: float, now: float) -> bool:
    """EcoServe's condition for an instance fewer; an idle one has all the slack there is."""
    n = len(serving)
    if n < 2:
        return False
    slacks = [i.mean_slack_s(now) for i in serving]
    busy = [slack for slack in slacks if slack != float("inf")]
    return not busy or sum(busy) / len(busy) > ttft_slo * (n + 1) / n


class _Window:
    """The values of the last seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()
        self._sum = 0.0

    def add(self, value: float, now: float) -> None:
        self._values.append((now, value))
        self._sum += value
        self._forget(now)

    def mean(self, now: float) -> float:
        """0 without values."""
        self._forget(now)
        return self._sum / len(self._values) if self._values else 0.0

    def rate(self, now: float) -> float:
        """The sum per second."""
        self._forget(now)
        return self._sum / self._seconds

    def largest(self, now: float) -> float:
        """0 without values."""
        self._forget(now)
        return max((value for _, value in self._values), default=0.0)

    def _forget(self, now: float) -> None:
        while self._values and self._values[0][0] < now - self._seconds:
            self._sum -= self._values.popleft()[1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
