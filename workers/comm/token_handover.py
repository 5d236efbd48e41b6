"""The handover: sampled tokens from the last stage to the first, without the engine between them.

With asynchronous scheduling, a step may feed tokens that the engine does not know yet
(`Step.follows`). The last stage sends what it has sampled in each step through host memory, in its
own process group of gloo, while it reports the same to the engine. A receive is posted when the
plan of the step arrives. The id of the step comes first, so that tokens of another step cause an
error, never a wrong answer.
"""

from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from wire.messages import Step
from workers.comm.transport import TransportError, tag_of


@dataclass(slots=True)
class _Expected:
    step_id: int
    buffer: Tensor  # [1 + sampling rows], int64: the id of the step and the tokens
    work: Any = None


class TokenHandover:
    """The tokens of the newest steps; all stages of the group must create theirs together.

    At most `max_in_flight` steps are in flight: the tokens of older ones have been sent. A step
    may follow one that is done when it runs at last, so twice as many are kept.
    """

    def __init__(self, timeout_s: float, max_in_flight: int) -> None:
        self._max_kept = 2 * max_in_flight + 1
        self._stage, self._last = dist.get_rank(), dist.get_world_size() - 1
        self._timeout = timedelta(seconds=timeout_s)
        self._link: Any = None
        if self._last:
            self._link = dist.new_group([0, self._last], timeout=self._timeout, backend="gloo")
        self._expected: deque[_Expected] = deque()
        self._sent: deque[tuple[Any, Tensor]] = deque()

    def expect(self, step: Step) -> None:
        """On the first stage, post the receive of what this step will sample."""
        num_sampling = sum(step.samples)
        if self._stage or not self._last or not num_sampling:
            return
        buffer = torch.empty(1 + num_sampling, dtype=torch.int64)
        work = dist.irecv(buffer, self._last, self._link, tag=tag_of(step.step_id))
        self._expected.append(_Expected(step.step_id, buffer, work))
        if len(self._expected) > self._max_kept:
            self._wait(self._expected.popleft())

    def hand(self, step_id: int, token_ids: bytes) -> None:
        """On the last stage, send the tokens of a step, packed int32. Raises `TransportError`."""
        if not token_ids:
            return
        ids = np.frombuffer(token_ids, np.int32).astype(np.int64)
        buffer = torch.from_numpy(np.concatenate([[step_id], ids]))
        if not self._last:
            self._expected.append(_Expected(step_id, buffer))
            if len(self._expected) > self._max_kept:
                self._expected.popleft()
            return
        try:
            self._sent.append((dist.isend(buffer, 0, self._link, tag=tag_of(step_id)), buffer))
            if len(self._sent) > self._max_kept:
                work, _ = self._sent.popleft()
                work.wait(self._timeout)
        except RuntimeError as error:
            raise _failed(f"hand over the tokens of step {step_id}", error) from error

    def take(self, step_id: int) -> np.ndarray:
        """On the first stage, the tokens that this step has sampled, int64 [sampling rows].

        Waits for them. Raises `TransportError` if they do not come in time.
        """
        while self._expected and self._expected[0].step_id < step_id:
            self._wait(self._expected.popleft())
        expected = self._expected[0] if self._expected else None
        if expected is None or expected.step_id != step_id:
            raise TransportError(f"the first stage does not expect the tokens of step {step_id}")
        self._wait(expected)
        arrived, *_ = expected.buffer.tolist()
        if arrived != step_id:
            raise TransportError(f"the first stage got tokens of step {arrived}, not {step_id}")
        token_ids: np.ndarray = expected.buffer[1:].numpy()
        return token_ids

    def _wait(self, expected: _Expected) -> None:
        if expected.work is None:
            return
        try:
            expected.work.wait(self._timeout)
        except RuntimeError as error:
            raise _failed(f"get the tokens of step {expected.step_id}", error) from error
        expected.work = None


def _failed(what: str, error: RuntimeError) -> TransportError:
    return TransportError(f"a stage did not {what}: {str(error).splitlines()[0]}")
