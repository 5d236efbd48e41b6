"""The results: what the last stage has sampled, sent to the engine in the order of the steps.

A GPU computes while the host goes on: the ids of a step are copied to the host without waiting, and
the following steps are launched meanwhile. A step is reported when its ids and the id that its
activations carried are on the host, and when all earlier steps have been reported.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from wire.messages import Logprobs, Step, StepDone
from workers.comm.transport import StepCheck
from workers.sampling.sampler import Sampled

# Between two looks at a device that computes while no message arrives.
POLL_S = 50e-6


@dataclass(slots=True, frozen=True)
class Result:
    """What the last stage has launched for a step at `began_at`, in seconds."""

    step: Step
    began_at: float
    sampled: Sampled
    scores: tuple[Logprobs, ...]
    check: StepCheck

    def is_done(self) -> bool:
        """Whether the device has finished the step. Raises `RuntimeError` if it failed."""
        return self.sampled.ids.is_done() and self.check.is_done()


class Results:
    """Results that the device may still compute, of at most `most` steps.

    `send` takes the messages; `count_step` the id of a step and when it began and ended.
    """

    def __init__(
        self,
        send: Callable[[StepDone], object],
        count_step: Callable[[int, float, float], None],
        most: int,
    ) -> None:
        self._send, self._count_step, self._most = send, count_step, most
        self._open: deque[Result] = deque()
        self._ended_at = 0.0

    def __len__(self) -> int:
        """The number of steps that have not been reported."""
        return len(self._open)

    @property
    def oldest_step_id(self) -> int | None:
        """The first step that has not been reported."""
        return self._open[0].step.step_id if self._open else None

    def add(self, result: Result) -> None:
        """Report the step as soon as it is done; waits for earlier ones if there are too many."""
        self._open.append(result)
        while len(self._open) > self._most:
            self._send_oldest()
        self.send_finished()

    def send_finished(self) -> None:
        """Report the steps that are done; raises `TransportError` for a step of another id."""
        while self._open and self._open[0].is_done():
            self._send_oldest()

    def wait(self, has_message: Callable[[float], bool], idle_s: float) -> bool:
        """Wait for a message, for at most `idle_s` seconds; returns whether one has arrived.

        Steps that are open are reported meanwhile. `has_message` waits at most for a time.
        """
        if not self._open:
            return has_message(idle_s)
        while self._open:
            if has_message(0):
                return True
            time.sleep(POLL_S)
            self.send_finished()
        return False

    def _send_oldest(self) -> None:
        result = self._open[0]
        step = result.step
        result.check.verify()
        token_ids = result.sampled.token_ids()
        self._open.popleft()
        # The device computes one step at a time: a step that was launched early begins later.
        began_at = max(result.began_at, self._ended_at)
        self._ended_at = time.monotonic()
        self._count_step(step.step_id, began_at, self._ended_at)
        self._send(
            StepDone(step.epoch, step.step_id, token_ids, result.sampled.logprobs, result.scores)
        )
