"""Scaling signals: whether the router wants an instance more or fewer.

Those of EcoServe (arXiv 2504.18154, section 3.5): one more, if the mean time to the first token of
the last `scale_window` seconds exceeds its target; one fewer, if the mean slack of all decoding
requests exceeds T x (n + 1) / n, where T is the target and n the number of instances. The first
one comes when most requests are late already. The second one does not tell whether the others can
take the load: requests that decode at half of their target have saved more than T after T seconds.

The load tells both. Of each second, an instance spends a part on prefill, and in each turn of
decoding, a part of the TPOT target. Both grow when there are fewer instances; where their sum
reaches 1, one of the targets is missed.

  load(m) = P / m + turn(G x tpot / m) / tpot

P are the seconds of prefill that arrive in a second, G the tokens that are generated in a second,
so G x tpot / m the requests that each of m instances decodes if they take as long as they may, and
turn(r) the seconds of a turn with r requests. One instance more, if the load exceeds `FULL`; one
fewer, if the load of the others would stay below `SPARE`.

Between two changes there are `scale_cooldown` seconds.
"""

from collections import deque
from collections.abc import Sequence

from configs.scaling import ScalingConfig
from router.instance import Instance

FULL, SPARE = 0.9, 0.75
"""What arrives while another instance starts must fit as well; and the load varies."""


class ScalingSignals:
    """Observes requests, and judges the number of instances."""

    def __init__(self, config: ScalingConfig) -> None:
        self._config = config
        self._ttft_s = _Window(config.scale_window)
        self._prefill_s = _Window(config.scale_window)
        self._next_at = float("-inf")

    def observe_first_token(self, ttft_s: float, now: float) -> None:
        """An online request has got its first token after so many seconds."""
        self._ttft_s.add(ttft_s, now)

    def observe_prefill(self, seconds: float, now: float) -> None:
        """An online request was sent, which takes so many seconds of an instance to prefill."""
        self._prefill_s.add(seconds, now)

    def change(
        self, serving: Sequence[Instance], num_instances: int, waited_s: float, now: float
    ) -> int:
        """1 for an instance more, -1 for one fewer, 0 for none; `waited_s` is the longest wait.

        There are `num_instances`, which need not all be serving now.
        """
        if self._config.actuator == "fixed" or now < self._next_at or not serving:
            return 0
        ttft_slo = max((i.status.ttft_slo for i in serving if i.status), default=0.0)
        tpot_slo = max((i.status.tpot_slo for i in serving if i.status), default=0.0)
        if not ttft_slo:
            return 0
        by_load = bool(tpot_slo) and self._config.scale_signal == "load"
        load = Load(serving, self._prefill_s.rate(now), tpot_slo) if by_load else None
        change = 0
        if num_instances < self._config.max_instances:
            is_late = max(self._ttft_s.mean(now), waited_s) > ttft_slo
            is_full = load is not None and load.of(num_instances) > FULL
            change = int(is_late or is_full)
        if not change and num_instances > max(1, self._config.min_instances) and not waited_s:
            if load is None:
                change = -_has_slack(serving, ttft_slo, now)
            else:
                change = -(load.of(num_instances - 1) < SPARE)
        if change:
            self._next_at = now + self._config.scale_cooldown
        return change


class Load:
    """The load of `serving` instances, by `prefill_s` seconds of prefill that arrive each second.

    `tpot_slo` is in seconds.
    """

    def __init__(self, serving: Sequence[Instance], prefill_s: float, tpot_slo: float) -> None:
        self._prefill_s, self._tpot_slo = prefill_s, tpot_slo
        promises = [i.status.promises for i in serving if i.status]
        decoding = [p for p in promises if p.num_decoding]
        # The rest of a turn is prefill.
        decode_share = max(0.1, 1 - prefill_s / len(serving))
        self._num_rows = sum(
            p.num_decoding * tpot_slo * decode_share / max(p.turn_s, p.lone_turn_s, 1e-6)
            for p in decoding
        )
        self._lone_turn_s = _mean([p.lone_turn_s for p in promises])
        self._s_per_row = _mean([p.turn_s_per_row for p in decoding])

    def of(self, num_instances: int) -> float:
        """The load if there were so many instances; 1 is what they can do within the targets."""
        rows = self._num_rows / num_instances
        turn_s = self._lone_turn_s + self._s_per_row * max(0.0, rows - 1)
        return self._prefill_s / num_instances + turn_s / self._tpot_slo


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

    def _forget(self, now: float) -> None:
        while self._values and self._values[0][0] < now - self._seconds:
            self._sum -= self._values.popleft()[1]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
