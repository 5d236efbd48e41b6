"""The heartbeat: a thread of each stage that reports its progress to the engine."""

import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from wire.messages import Doing, Heartbeat
from wire.sockets import Spoke

INTERVAL_S = 0.25
# With steps of 0.1 ms, this many run between two beats; more than that are not reported.
MAX_SPANS = 5000


@dataclass(slots=True)
class Progress:
    """How far a stage has come, and what it does now.

    `spans` are the steps that have not been reported to the engine yet, as (id, began, ended).
    `doing` is what the main thread does: it sets apart a stage that has much to compute from one
    that waits for a neighbour. `now` puts first what the device still computes, or what another
    thread loads.
    """

    iterations: int = 0
    steps: int = 0
    busy_s: float = 0.0
    doing: Doing = "loads"
    is_device_busy: Callable[[], bool] = lambda: False
    is_loading: bool = False
    spans: deque[tuple[int, float, float]] = field(default_factory=lambda: deque(maxlen=MAX_SPANS))

    def now(self) -> Doing:
        """What the stage is busy with."""
        if self.is_loading:
            return "loads"
        return "computes" if self.is_device_busy() else self.doing

    def count_step(self, step_id: int, began_at: float, ended_at: float) -> None:
        """A step has been run; times in seconds of the monotonic clock."""
        self.spans.append((step_id, began_at, ended_at))
        self.busy_s += ended_at - began_at
        self.steps += 1  # last: a beat that counts the step has its span as well


@dataclass(slots=True)
class HeartbeatThread:
    """Sends beats while it is entered, on a socket of its own: sockets are not shared by threads.

    `exact` says whether the steps' times are exact.
    """

    endpoint: str
    stage: int
    epoch: int
    progress: Progress
    exact: bool = True
    secret: str | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def make_beat(self) -> Heartbeat:
        """The next beat; it takes the spans, so that each is reported once."""
        counted = self.progress
        iterations, steps, busy_s = counted.iterations, counted.steps, counted.busy_s
        spans = [counted.spans.popleft() for _ in range(len(counted.spans))]
        return Heartbeat(
            self.stage,
            self.epoch,
            os.getpid(),
            iterations,
            steps,
            busy_s,
            time.monotonic(),
            array("q", [step_id for step_id, _, _ in spans]).tobytes(),
            array("d", [began_at for _, began_at, _ in spans]).tobytes(),
            array("d", [ended_at for _, _, ended_at in spans]).tobytes(),
            self.exact,
            counted.now(),
        )

    def _beat(self) -> None:
        with Spoke[None](self.endpoint, f"heartbeat-{self.stage}", None, self.secret) as spoke:
            while True:
                spoke.send(self.make_beat())
                if self._stop.wait(INTERVAL_S):
                    return
