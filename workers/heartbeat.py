"""The heartbeat: a thread of each stage that tells the engine it lives and how far it has come."""

import os
import threading
from dataclasses import dataclass, field
from typing import Self

from engine.messages import Heartbeat
from engine.wire import Spoke

INTERVAL_S = 0.5


@dataclass(slots=True)
class Progress:
    """What the stage's main thread counts."""

    chores: int = 0
    steps: int = 0
    busy_s: float = 0.0


@dataclass(slots=True)
class HeartbeatThread:
    """Beats for as long as it is entered. It has a socket of its own: they are not shared."""

    endpoint: str
    stage: int
    epoch: int
    progress: Progress
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

    def _beat(self) -> None:
        with Spoke[None](self.endpoint, f"heartbeat-{self.stage}", None) as spoke:
            while True:
                counted = self.progress
                beat = Heartbeat(
                    self.stage,
                    self.epoch,
                    os.getpid(),
                    counted.chores,
                    counted.steps,
                    counted.busy_s,
                )
                spoke.send(beat)
                if self._stop.wait(INTERVAL_S):
                    return
