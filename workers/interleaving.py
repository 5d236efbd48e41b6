"""Interleaving: the steps of a stage with virtual stages, each of which it runs on every slice."""

import time
from collections.abc import Sequence
from functools import partial

from wire.messages import Step, ToStage
from wire.sockets import Spoke
from workers.comm.arrivals import Arrivals
from workers.comm.transport import Transport
from workers.model import batch
from workers.slice_order import PATIENCE, SliceOrder


class Interleaving:
    """What the stage runs next: the oldest step that has arrived, see `slice_order`.

    `transports` are those of its slices.
    """

    def __init__(self, transports: Sequence[Transport], num_stages: int, *, is_first: bool) -> None:
        self._transports, self._is_first = transports, is_first
        self._arrivals = Arrivals(len(transports))
        self._order = SliceOrder(len(transports), num_stages if is_first else None)
        self._took_at: float | None = None  # while a slice runs
        self._patient_until = 0.0
        self._steps: dict[int, Step] = {}
        for i, transport in enumerate(transports):
            transport.follow(partial(self._arrivals.post, i))

    def __len__(self) -> int:
        """The number of steps that have not passed all slices."""
        return len(self._steps)

    def expect(self, step: Step) -> None:
        """Post the receives of a step for all slices, when its plan has arrived."""
        self._steps[step.step_id] = step
        for transport in self._transports:
            transport.expect(step.step_id, batch.num_tokens(step))
        if self._is_first:
            self._order.arrive(0, step.step_id)

    def has_next(self) -> bool:
        """Whether a step has arrived that should be run now; raises `TransportError`."""
        if self._took_at is not None:
            now = time.monotonic()
            self._patient_until = now + PATIENCE * (now - self._took_at)
            self._took_at = None
        for slice_index, step_id in self._arrivals.drain():
            self._order.arrive(slice_index, step_id)
        return len(self._order) > 0 and not self._patience_s()

    def take(self) -> tuple[Step, int] | None:
        """Return the step to run next, and the slice; None if there is none."""
        if not self.has_next() or (chosen := self._order.take()) is None:
            return None
        slice_index, step_id = chosen
        self._took_at = time.monotonic()
        is_last = slice_index == len(self._transports) - 1
        return self._steps.pop(step_id) if is_last else self._steps[step_id], slice_index

    def wait(self, engine: Spoke[ToStage], timeout_s: float) -> bool:
        """Wait for activations or a message; returns whether one has come."""
        return self._arrivals.wait(engine.socket, min(timeout_s, self._patience_s() or timeout_s))

    def _patience_s(self) -> float:
        """How long a step that has arrived waits for an older one to come round."""
        if not self._order.is_early:
            return 0.0
        return max(0.0, self._patient_until - time.monotonic())

    def close(self) -> None:
        """Stop listening for arrivals; a stage's process need not."""
        self._arrivals.close()
