"""The step history: the steps of the last 30 s, fetched from the engine while somebody watches."""

import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from server.requests.engine_client import EngineClient
from wire.messages import PHASES, ReportedSteps, WatchSteps
from wire.pipeline_status import KEPT_S, Steps

# Between two questions; stages report four times a second.
PAUSE_S = 0.2
NUM_DELAYS = 120
_LETTERS = np.frombuffer("".join(phase[0] for phase in PHASES).encode(), np.uint8)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Steps that arrived together."""

    number: int
    received_at: float
    steps: Steps


class StepHistory:
    """Asks the engine with `ask`; `newest` is the number of the last batch of steps."""

    def __init__(self, client: EngineClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._batches: deque[_Batch] = deque()
        self._asked_engine = self._newest_report = 0
        self._asked_at = 0.0
        # When the engine began, by each of its last `Stats`: the earliest was the least delayed.
        self._began_at: deque[float] = deque(maxlen=NUM_DELAYS)
        self.newest = 0
        client.on_steps = self._take

    def ask(self) -> None:
        """Ask the engine for the steps that are new; of a new engine, for all.

        All viewers ask; the engine is asked at most once in `PAUSE_S`.
        """
        stats, now = self._client.stats, self._clock()
        if stats is None or now - self._asked_at < PAUSE_S:
            return
        self._asked_at = now
        if stats.engine != self._asked_engine:
            self._asked_engine, self._newest_report = stats.engine, 0
            self._began_at.clear()
        self._began_at.append(self._client.stats_at - stats.uptime_s)
        self._client.ask_steps(WatchSteps(self._newest_report))

    def forget(self) -> None:
        """Nobody watches any more; the engine has the steps for whoever comes next."""
        self._batches.clear()
        self._asked_engine, self._asked_at = 0, 0.0

    def after(self, number: int) -> Steps:
        """The steps of the batches after this number."""
        new = [batch.steps for batch in self._batches if batch.number > number]
        return new[0] if len(new) == 1 else _joined(new)

    def _take(self, message: ReportedSteps) -> None:
        stats = self._client.stats
        is_ours = stats is not None and stats.engine == self._asked_engine
        if stats is None or not is_ours or message.after != self._newest_report:
            return  # of a question that was asked twice, or of another engine
        self._newest_report = message.newest
        if not message.stages:
            return
        now = self._clock()
        steps = _steps(message, min(self._began_at))
        self.newest += 1
        self._batches.append(_Batch(self.newest, now, steps))
        while self._batches[0].received_at < now - KEPT_S:
            self._batches.popleft()


def _steps(message: ReportedSteps, engine_began_at: float) -> Steps:
    """The columns as lists, with times of the server's clock."""

    def times(column: bytes) -> list[float]:
        seconds: list[float] = (np.frombuffer(column) + engine_began_at).round(5).tolist()
        return seconds

    return Steps(
        array("i", message.stages).tolist(),
        array("q", message.step_ids).tolist(),
        _LETTERS[np.frombuffer(message.phases, np.uint8)].tobytes().decode(),
        array("i", message.num_rows).tolist(),
        array("i", message.num_tokens).tolist(),
        times(message.began_at),
        times(message.ended_at),
    )


def _joined(batches: list[Steps]) -> Steps:
    return Steps(
        [each for batch in batches for each in batch.stages],
        [each for batch in batches for each in batch.step_ids],
        "".join(batch.phases for batch in batches),
        [each for batch in batches for each in batch.num_rows],
        [each for batch in batches for each in batch.num_tokens],
        [each for batch in batches for each in batch.began_at],
        [each for batch in batches for each in batch.ended_at],
    )
