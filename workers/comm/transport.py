"""The transport: activations from one stage to the next, point to point and asynchronous.

Each link has a process group of its own, and so its own communicator and time-out. A receive is
posted as soon as the plan is known, before the previous tensor is computed; a send is kept until
the receiver must have it. The step's id travels in a row of its own ahead of the activations: a
tensor that belongs to another step is an error, never a wrong answer.

gloo moves host memory: stages on GPUs without NCCL stage their tensors through it.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class TransportError(Exception):
    """A neighbour did not send or take a tensor in time, or sent one of another step."""


@dataclass(slots=True)
class _Expected:
    step_id: int
    buffer: Tensor  # [1 + tokens, hidden]
    work: Any


class Transport:
    """This stage's two links. Every stage of the group must make one at the same time."""

    def __init__(
        self, hidden_size: int, dtype: torch.dtype, device: torch.device, timeout_s: float
    ) -> None:
        self._stage, self._num_stages = dist.get_rank(), dist.get_world_size()
        self._hidden_size, self._dtype, self._device = hidden_size, dtype, device
        self._timeout = timedelta(seconds=timeout_s)
        self._uses_nccl = dist.get_backend() == "nccl"
        self._wire_device = device if self._uses_nccl else torch.device("cpu")
        self._expected: deque[_Expected] = deque()
        self._sent: deque[tuple[Any, Tensor]] = deque()
        links = [
            dist.new_group([stage, stage + 1], timeout=self._timeout)
            for stage in range(self._num_stages - 1)
        ]
        self._from_previous = links[self._stage - 1] if self._stage > 0 else None
        self._to_next = links[self._stage] if self._stage < self._num_stages - 1 else None

    def expect(self, step_id: int, num_tokens: int) -> None:
        """Post the receive of a step whose plan has arrived. Does nothing on the first stage."""
        if self._from_previous is None:
            return
        buffer = self._buffer(num_tokens)
        with self._link(f"get step {step_id} from stage {self._stage - 1}"):
            work = dist.irecv(buffer, self._stage - 1, self._from_previous, tag=_tag(step_id))
        self._expected.append(_Expected(step_id, buffer, work))

    def recv(self, step_id: int) -> Tensor:
        """The oldest expected activations, `[tokens, hidden]`; by the plan they are of `step_id`.

        Raises `TransportError` when they do not arrive in time or belong to another step.
        """
        expected = self._expected.popleft()
        with self._link(f"get step {step_id} from stage {self._stage - 1}"):
            self._wait(expected.work)
        arrived = int(_header(expected.buffer).item())
        if not arrived == expected.step_id == step_id:
            raise TransportError(f"stage {self._stage} got step {arrived}, not step {step_id}")
        return expected.buffer[1:].to(self._device)

    def pack(self, step_id: int, hidden: Tensor) -> Tensor:
        """What `send` takes: `[tokens, hidden]` behind the step's id, ready to be sent."""
        buffer = self._buffer(hidden.shape[0])
        buffer[1:] = hidden
        _header(buffer).fill_(step_id)
        return buffer

    def send(self, step_id: int, packed: Tensor) -> None:
        """Hand `packed` to the next stage without waiting for it. Raises `TransportError`."""
        assert self._to_next is not None, "the last stage has no next stage to send to"
        with self._link(f"send step {step_id} to stage {self._stage + 1}"):
            work = dist.isend(packed, self._stage + 1, self._to_next, tag=_tag(step_id))
            self._sent.append((work, packed))
            # At most S steps are in flight, so what was sent S steps ago has long been received.
            if len(self._sent) > self._num_stages:
                oldest, _ = self._sent.popleft()
                self._wait(oldest)

    @contextmanager
    def _link(self, what: str) -> Iterator[None]:
        """torch's errors on a link are reported as the neighbour's."""
        try:
            yield
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise TransportError(f"stage {self._stage} did not {what}: {reason}") from error

    def _wait(self, work: Any) -> None:
        # NCCL only orders its stream here, and its watchdog applies the group's time-out; with a
        # time-out of its own, this call would poll on the CPU.
        if self._uses_nccl:
            work.wait()
        else:
            work.wait(self._timeout)

    def _buffer(self, num_tokens: int) -> Tensor:
        return torch.empty(
            1 + num_tokens, self._hidden_size, dtype=self._dtype, device=self._wire_device
        )


def _header(buffer: Tensor) -> Tensor:
    """The first eight bytes as one int64."""
    return buffer[0, : 8 // buffer.element_size()].view(torch.int64)


def _tag(step_id: int) -> int:
    return step_id % (1 << 31)
