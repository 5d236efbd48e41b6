"""The transport sends activations from one stage to the next, asynchronously.

Each link has its own process group, and therefore its own communicator and timeout. A receive is
posted as soon as the plan is known, before the previous tensor is computed; a sent tensor is kept
until the receiver must have received it. The id of the step is sent in an extra row before the
activations: a tensor of another step causes an error, never a wrong answer.

gloo sends host memory: stages on GPUs without NCCL copy their tensors to the host first. There the
id is compared as soon as a tensor arrives. NCCL receives on the device, for which the host does not
wait: a stage sends the id on as it came, and the last stage compares it before it reports the step.

With virtual stages, there is a transport for each slice of the layers, with links of its own: on
each of them the steps keep their order, whatever the order of the slices. The last stage sends what
it has computed on a slice to the first stage, which continues with the next slice.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from daemon.processes.ranks import stage_and_rank
from workers.comm.streams import CudaStreams, NoStreams, Streams
from workers.device.host_copy import HostCopy, to_host


class TransportError(Exception):
    """A neighbour did not send or receive a tensor in time, or sent one of another step."""


@dataclass(slots=True)
class _Expected:
    step_id: int
    buffer: Tensor  # [1 + tokens, hidden]
    work: Any  # None if nothing need be waited for


Posted = Callable[[int, Callable[[], None] | None], None]
"""Takes the id of a step whose receive is posted, and a function that waits until it has arrived.

Without a function, it has arrived already.
"""


class StepCheck:
    """Whether the activations of a step were its own, which the device may still have to tell."""

    __slots__ = ("_arrived", "_stage", "_step_id")

    def __init__(self, stage: int, step_id: int, arrived: HostCopy | None) -> None:
        """`arrived` is the id that was received, or None if it has been compared already."""
        self._stage, self._step_id, self._arrived = stage, step_id, arrived

    def is_done(self) -> bool:
        """Whether `verify` returns without waiting."""
        return self._arrived is None or self._arrived.is_done()

    def verify(self) -> None:
        """Raise `TransportError` if they were of another step; waits for the device."""
        if self._arrived is not None:
            _compare(self._stage, int(self._arrived.numpy()[0]), self._step_id)


class Transport:
    """The links of this stage; all stages of the group must create theirs at the same time."""

    def __init__(
        self,
        input_width: int,
        dtype: torch.dtype,
        device: torch.device,
        timeout_s: float,
        ranks_per_stage: int = 1,
    ) -> None:
        """`input_width` is the width of the activations that this stage receives.

        Each rank of a stage sends to the rank with the same number in the next stage.
        """
        rank, self._num_stages = dist.get_rank(), dist.get_world_size() // ranks_per_stage
        self._stage, _ = stage_and_rank(rank, ranks_per_stage)
        self._previous, self._next = rank - ranks_per_stage, rank + ranks_per_stage
        self._input_width, self._dtype, self._device = input_width, dtype, device
        self._timeout = timedelta(seconds=timeout_s)
        self._uses_nccl = dist.get_backend() == "nccl"
        self._wire_device = device if self._uses_nccl else torch.device("cpu")
        self._streams: Streams = CudaStreams(device) if self._uses_nccl else NoStreams()
        self._expected: deque[_Expected] = deque()
        self._unchecked: Tensor | None = None  # the id that came with the newest activations
        self._sent: deque[tuple[Any, Tensor]] = deque()
        # Link i begins at rank i; all ranks must make all groups, in one order.
        before = range((self._num_stages - 1) * ranks_per_stage)
        links = [dist.new_group([i, i + ranks_per_stage], timeout=self._timeout) for i in before]
        self._from_previous = links[self._previous] if self._stage > 0 else None
        self._to_next = links[rank] if self._stage < self._num_stages - 1 else None
        self._next_slice: Transport | None = None  # of the only stage
        self._posted: Posted | None = None

    def continue_in(self, next_slice: "Transport") -> None:
        """Link the last stage to the first one's transport of the next slice.

        All stages must do this at the same time; they have one rank each.
        """
        last = self._num_stages - 1
        if not last:
            self._next_slice = next_slice
            return
        link = dist.new_group([0, last], timeout=self._timeout)
        if self._stage == last:
            self._to_next, self._next = link, 0
        if self._stage == 0:
            next_slice._from_previous, next_slice._previous = link, last

    def follow(self, posted: Posted) -> None:
        """Call `posted` for each receive from now on."""
        self._posted = posted

    @property
    def waits_for_neighbours(self) -> bool:
        """Whether `recv` and `pack` may keep the host waiting."""
        return self._num_stages > 1 and not self._uses_nccl

    def expect(self, step_id: int, num_tokens: int) -> None:
        """Post the receive of a step after its plan has arrived; no effect on the first stage."""
        if self._from_previous is None:
            return
        with self._link(self._source_of(step_id)), self._streams.receiving():
            buffer = self._buffer(num_tokens, self._input_width)
            work = dist.irecv(buffer, self._previous, self._from_previous, tag=tag_of(step_id))
        expected = _Expected(step_id, buffer, work)
        self._expected.append(expected)
        if self._posted is not None:
            self._posted(step_id, partial(self._arrive, expected))

    def recv(self, step_id: int) -> Tensor:
        """Return the oldest expected activations, `[tokens, width]`, which must be of `step_id`.

        Raises `TransportError` if they do not arrive in time or belong to another step; with NCCL,
        `check` raises it instead.
        """
        expected = self._expected.popleft()
        if expected.work is not None:
            with self._link(self._source_of(step_id)):
                self._wait(expected.work)
        self._streams.take(expected.buffer)
        _compare(self._stage, expected.step_id, step_id)
        header = _header(expected.buffer)
        if self._uses_nccl:
            self._unchecked = header
        else:
            _compare(self._stage, int(header.item()), step_id)
        return expected.buffer[1:].to(self._device)

    def check(self, step_id: int) -> StepCheck:
        """The check of the activations that were received last, which must be of `step_id`."""
        arrived = None if self._unchecked is None else to_host(self._unchecked)
        return StepCheck(self._stage, step_id, arrived)

    def pack(self, step_id: int, hidden: Tensor) -> Tensor:
        """Pack the step id and `[tokens, width]` into the buffer that `send` takes."""
        buffer = self._buffer(*hidden.shape)
        buffer[1:] = hidden
        header = _header(buffer)
        if self._unchecked is None:
            header.fill_(step_id)
        else:
            header.copy_(self._unchecked)
        return buffer

    def send(self, step_id: int, packed: Tensor) -> None:
        """Start sending `packed` to the next stage; raises `TransportError`."""
        if self._next_slice is not None:
            self._next_slice._take(step_id, packed)
            return
        assert self._to_next is not None, "the last stage has no next stage to send to"
        with self._link(f"send step {step_id} to stage {(self._stage + 1) % self._num_stages}"):
            with self._streams.sending():
                work = dist.isend(packed, self._next, self._to_next, tag=tag_of(step_id))
            self._sent.append((work, packed))
            # At most S steps are in flight, so a tensor sent S steps ago has been received.
            if len(self._sent) > self._num_stages:
                oldest, _ = self._sent.popleft()
                self._wait(oldest)

    def _take(self, step_id: int, packed: Tensor) -> None:
        """Take what the previous slice of the only stage has computed."""
        self._expected.append(_Expected(step_id, packed, None))
        if self._posted is not None:
            self._posted(step_id, None)

    def _arrive(self, expected: _Expected) -> None:
        """Keep the thread waiting until the activations are here. Raises `TransportError`."""
        with self._link(self._source_of(expected.step_id)):
            if self._uses_nccl:
                self._streams.wait(expected.work)
            else:
                work, expected.work = expected.work, None  # gloo's can be waited for only once
                work.wait(self._timeout)

    def _source_of(self, step_id: int) -> str:
        return f"get step {step_id} from stage {(self._stage - 1) % self._num_stages}"

    @contextmanager
    def _link(self, what: str) -> Iterator[None]:
        """Convert torch's errors on a link to `TransportError`."""
        try:
            yield
        except torch.AcceleratorError:
            raise  # a kernel of this stage has failed, of which the device tells only now
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise TransportError(f"stage {self._stage} did not {what}: {reason}") from error

    def _wait(self, work: Any) -> None:
        # NCCL only orders its stream here, and its watchdog applies the timeout of the group; with
        # a timeout argument, this call would poll on the CPU.
        if self._uses_nccl:
            work.wait()
        else:
            work.wait(self._timeout)

    def _buffer(self, num_tokens: int, width: int) -> Tensor:
        return torch.empty(1 + num_tokens, width, dtype=self._dtype, device=self._wire_device)


def connect(
    input_widths: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    timeout_s: float,
    ranks_per_stage: int = 1,
) -> list[Transport]:
    """The transports of this stage's slices, which receive activations of these widths.

    All stages of the group must connect at the same time.
    """
    transports = [
        Transport(width, dtype, device, timeout_s, ranks_per_stage) for width in input_widths
    ]
    for before, after in pairwise(transports):
        before.continue_in(after)
    return transports


def _compare(stage: int, arrived: int, step_id: int) -> None:
    if arrived != step_id:
        raise TransportError(f"stage {stage} got step {arrived}, not step {step_id}")


def _header(buffer: Tensor) -> Tensor:
    """The first eight bytes of the first row, int64 [1]."""
    return buffer[0, : 8 // buffer.element_size()].view(torch.int64)


def tag_of(step_id: int) -> int:
    """The tag of what belongs to a step."""
    return step_id % (1 << 31)
