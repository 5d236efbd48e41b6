"""The heartbeat: a thread of each stage that reports its progress to the engine."""

import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from daemon.processes.ranks import socket_name
from wire.messages import Doing, Heartbeat
from wire.sockets import Spoke

INTERVAL_S = 0.25
# Maximum steps in a heartbeat; fewer run between two heartbeats, even at 0.1 ms per step.
MAX_SPANS = 5000


@dataclass(slots=True)
class Progress:
    """The progress of a stage, and its current activity.

    `spans` are the steps that have not been reported to the engine yet, as (id, began, ended).
    `doing` is the activity of the main thread: it distinguishes a stage that computes for long from
    a stage that waits for a neighbour. In `now`, loading in another thread has priority over it,
    and so has the device, unless the main thread computes.
    """

    iterations: int = 0
    steps: int = 0
    busy_s: float = 0.0
    doing: Doing = "loads"
    device_doing: Callable[[], Doing | None] = lambda: None
    is_loading: bool = False
    spans: deque[tuple[int, float, float]] = field(default_factory=lambda: deque(maxlen=MAX_SPANS))

    def now(self) -> Doing:
        """The current activity of the stage."""
        if self.is_loading:
            return "loads"
        doing = self.doing
        return doing if doing == "computes" else self.device_doing() or doing

    def count_step(self, step_id: int, began_at: float, ended_at: float) -> None:
        """Count a step that has run; times are in seconds of the monotonic clock."""
        self.spans.append((step_id, began_at, ended_at))
        self.busy_s += ended_at - began_at
        self.steps += 1  # last, so that a heartbeat that counts the step also has its span


@dataclass(slots=True)
class HeartbeatThread:
    """Sends heartbeats while it is entered, on its own socket, as threads cannot share one.

    `exact` is whether the times of the steps are exact.
    """

    endpoint: str
    stage: int
    epoch: int
    progress: Progress
    exact: bool = True
    secret: str | None = None
    tensor_rank: int = 0
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
        """Make the next heartbeat, and remove its spans, so that each span is reported once."""
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
            self.tensor_rank,
        )

    def _beat(self) -> None:
        name = socket_name("heartbeat", self.stage, self.tensor_rank)
        with Spoke[None](self.endpoint, name, None, self.secret) as spoke:
            while True:
                spoke.send(self.make_beat())
                if self._stop.wait(INTERVAL_S):
                    return
