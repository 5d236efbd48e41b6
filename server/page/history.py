"""The history: what happened in the last 30 s, kept for whoever begins to watch.

While nobody watches, it costs one sample for each `Stats` of the engine, four times a second.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from server.http.drain import Drain
from server.metrics import Metrics
from server.requests.engine_client import EngineClient
from wire.messages import EngineReady, StageStats, Stats
from wire.pipeline_status import KEPT_S, Quantiles, Sample, StageFigures, State

# Of rates of tokens: long enough that a micro-batch of large steps does not make them jump.
RATE_S = 1.0
# Between two samples: with TTFT targets, the engine may send `Stats` every 20 ms.
PAUSE_S = 0.2
# Without `Stats` for so long, a sample is taken nevertheless: the engine is lost or starts.
SILENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class _Counts:
    """The engine's `Stats` that were received at `at`."""

    at: float
    stats: Stats


class History:
    """The samples of the last 30 s, and figures over them."""

    def __init__(
        self,
        client: EngineClient,
        drain: Drain,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client, self._drain, self._metrics, self._clock = client, drain, metrics, clock
        self.samples: deque[Sample] = deque()
        self._counts: deque[_Counts] = deque()
        client.listeners.append(self._on_engine)

    @property
    def state(self) -> State:
        """The state of the daemon in a word or two."""
        client = self._client
        if client.stats is None:
            return "starting"
        if not client.is_connected:
            return "engine lost"
        if not client.is_ready:
            return "loading" if client.ready is None else "restarting"
        return "draining" if self._drain.has_begun else "ready"

    @property
    def reason(self) -> str:
        """Why it is not ready, where that is known."""
        stats = self._client.stats
        return stats.trouble if stats is not None else ""

    def sample_in_silence(self) -> None:
        """Take a sample if the engine has sent nothing for a while."""
        now = self._clock()
        if not self.samples or now - self.samples[-1].at >= SILENCE_S:
            self._sample(now)

    def samples_after(self, at: float) -> tuple[Sample, ...]:
        """The samples later than `at`."""
        return tuple(each for each in self.samples if each.at > at)

    def stages(self) -> tuple[StageFigures, ...]:
        """The stages, with their bubbles."""
        if not self._counts:
            return ()
        newest, before = self._counts[-1], self._before(KEPT_S)
        earlier = {stage.stage: stage for stage in before.stats.stages}
        return tuple(
            StageFigures(
                stage.stage,
                round(newest.at - stage.heartbeat_age_s, 4),
                _bubble(earlier.get(stage.stage), stage),
            )
            for stage in newest.stats.stages
        )

    def first_token_s(self) -> Quantiles | None:
        """Of the times to the first token."""
        return self._quantiles(self._metrics.latest_first_tokens)

    def per_token_s(self) -> Quantiles | None:
        """Of the times per output token."""
        return self._quantiles(self._metrics.latest_per_token)

    def _on_engine(self, message: Stats | EngineReady) -> None:
        now = self._clock()
        if isinstance(message, Stats) and not self._is_early(now, message):
            if self._counts and self._counts[-1].stats.engine != message.engine:
                self._counts.clear()  # the counters of a new engine begin at 0
            self._counts.append(_Counts(now, message))
            while self._counts[0].at < now - KEPT_S:
                self._counts.popleft()
            self._sample(now)

    def _is_early(self, now: float, stats: Stats) -> bool:
        if not self._counts or self._counts[-1].stats.engine != stats.engine:
            return False
        return now - self._counts[-1].at < PAUSE_S

    def _sample(self, now: float) -> None:
        stats, state = self._client.stats, self.state
        if stats is None or state == "engine lost":
            figures = Sample(round(now, 4), state, open_requests=self._drain.num_open)
        else:
            generated, prompt = self._rates()
            figures = Sample(
                round(now, 4),
                state,
                stats.phase,
                stats.waiting,
                stats.live,
                self._client.num_queued,
                self._drain.num_open,
                round(stats.blocks_used / max(1, stats.blocks_total), 4),
                generated,
                prompt,
            )
        self.samples.append(figures)
        while self.samples[0].at < now - KEPT_S:
            self.samples.popleft()

    def _rates(self) -> tuple[float, float]:
        """Generated and prompt tokens per second."""
        newest, before = self._counts[-1], self._before(RATE_S)
        seconds = newest.at - before.at
        if seconds <= 0:
            return 0.0, 0.0
        generated = newest.stats.generated_tokens - before.stats.generated_tokens
        prompt = newest.stats.prompt_tokens - before.stats.prompt_tokens
        return round(generated / seconds, 1), round(prompt / seconds, 1)

    def _before(self, seconds: float) -> _Counts:
        """The newest counts that are at least so old, or the oldest ones."""
        limit = self._counts[-1].at - seconds
        for counts in reversed(self._counts):
            if counts.at <= limit:
                return counts
        return self._counts[0]

    def _quantiles(self, latest: Iterable[tuple[float, float]]) -> Quantiles | None:
        since = self._clock() - KEPT_S
        values = sorted(value for at, value in latest if at >= since)
        if not values:
            return None
        last = len(values) - 1
        return Quantiles(*(round(values[round(share * last)], 6) for share in (0.5, 0.95)))


def _bubble(before: StageStats | None, stage: StageStats) -> float | None:
    """The part of the time with work between the two in which the stage had no step."""
    if not stage.has_exact_times or before is None:
        return None
    bubble_s, busy_s = stage.bubble_s - before.bubble_s, stage.busy_s - before.busy_s
    return round(bubble_s / (bubble_s + busy_s), 4) if bubble_s + busy_s > 0 else None
