"""Scaling signals: whether the router wants an instance more or fewer (EcoServe, section 3.5).

One more, if the mean time to the first token of the last `scale_window` seconds exceeds its target.
One fewer, if the mean slack of all decoding requests exceeds T x (n + 1) / n, where T is the target
and n the number of instances: so much would be left if the others had its requests as well. An idle
instance has all the slack there is. Between two changes there are `scale_cooldown` seconds.
"""

from collections import deque
from collections.abc import Sequence

from configs.scaling import ScalingConfig
from router.instance import Instance


class ScalingSignals:
    """Observes first tokens, and judges the number of instances."""

    def __init__(self, config: ScalingConfig) -> None:
        self._config = config
        self._first_tokens: deque[tuple[float, float]] = deque()  # times, and seconds until then
        self._sum_s = 0.0
        self._next_at = float("-inf")

    def observe(self, ttft_s: float, now: float) -> None:
        """A request has got its first token, or waits for it since `ttft_s` seconds."""
        self._first_tokens.append((now, ttft_s))
        self._sum_s += ttft_s

    def change(
        self, serving: Sequence[Instance], num_instances: int, waited_s: float, now: float
    ) -> int:
        """1 for an instance more, -1 for one fewer, 0 for none; `waited_s` is the longest wait."""
        while self._first_tokens and self._first_tokens[0][0] < now - self._config.scale_window:
            self._sum_s -= self._first_tokens.popleft()[1]
        if self._config.actuator == "fixed" or now < self._next_at or not serving:
            return 0
        target_s = max((i.status.ttft_slo for i in serving if i.status), default=0.0)
        change = 0
        if num_instances < self._config.max_instances and self._is_late(target_s, waited_s):
            change = 1
        elif num_instances > max(1, self._config.min_instances) and waited_s == 0:
            change = -self._is_idle(serving, target_s, now)
        if change:
            self._next_at = now + self._config.scale_cooldown
        return change

    def _is_late(self, target_s: float, waited_s: float) -> bool:
        mean_s = self._sum_s / len(self._first_tokens) if self._first_tokens else 0.0
        return target_s > 0 and max(mean_s, waited_s) > target_s

    def _is_idle(self, serving: Sequence[Instance], target_s: float, now: float) -> bool:
        n = len(serving)
        if n < 2 or not target_s:
            return False
        slacks = [i.mean_slack_s(now) for i in serving]
        busy = [slack for slack in slacks if slack != float("inf")]
        return not busy or sum(busy) / len(busy) > target_s * (n + 1) / n
