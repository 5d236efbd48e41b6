"""The tensor group: the ranks that share the layers of one stage (tensor parallelism).

Each rank of a stage holds a part of every weight matrix, as a plan of transformers says, and the
ranks add up or put together what they have computed, in collectives on the stage's device. The
ranks of a stage are consecutive, so that they are on one host wherever possible.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from workers.comm.transport import TransportError


class StageTensorGroup:
    """The ranks of this stage; all of them must call a collective at the same time."""

    def __init__(self, rank: int, group: Any, device: torch.device) -> None:
        self._rank, self._group = rank, group
        self.mesh = DeviceMesh.from_group(group, device.type)
        self._wire_device = device if dist.get_backend(group) == "nccl" else torch.device("cpu")

    @property
    def rank(self) -> int:
        """The number of this rank in the stage."""
        return self._rank

    @property
    def size(self) -> int:
        """The number of ranks in the stage."""
        return self.mesh.size()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum of the tensors of all ranks. Raises `TransportError`."""
        tensor = tensor.contiguous()
        with _lost("add up activations"):
            dist.all_reduce(tensor, group=self._group)
        return tensor

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks. Raises `TransportError`."""
        tensor = tensor.contiguous()
        gathered = [torch.empty_like(tensor) for _ in range(self.size)]
        with _lost("put activations together"):
            dist.all_gather(gathered, tensor, group=self._group)
        return gathered

    def tell(self, value: object) -> None:
        """Send a value from rank 0 to the others, which `hear` it."""
        payload = msgspec.msgpack.encode(value)
        size = torch.tensor([len(payload)], device=self._wire_device)
        with _lost("tell"):
            dist.broadcast(size, group=self._group, group_src=0)
            sent = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
            dist.broadcast(sent.to(self._wire_device), group=self._group, group_src=0)

    def hear(self, kind: Any) -> Any:
        """A value of this type that rank 0 tells.

        Raises `TransportError`, and `msgspec.ValidationError` for a value of another type.
        """
        size = torch.zeros(1, dtype=torch.int64, device=self._wire_device)
        with _lost("hear"):
            dist.broadcast(size, group=self._group, group_src=0)
            payload = torch.empty(int(size), dtype=torch.uint8, device=self._wire_device)
            dist.broadcast(payload, group=self._group, group_src=0)
        return msgspec.msgpack.decode(payload.cpu().numpy().tobytes(), type=kind)


def join(
    num_stages: int, size: int, device: torch.device, timeout: timedelta
) -> StageTensorGroup | None:
    """The tensor group of this rank, or None if it would be alone; all ranks must call this."""
    if size == 1:
        return None
    groups = [
        dist.new_group(range(stage * size, (stage + 1) * size), timeout=timeout)
        for stage in range(num_stages)
    ]
    stage, rank = divmod(dist.get_rank(), size)
    return StageTensorGroup(rank, groups[stage], device)


@contextmanager
def _lost(what: str) -> Iterator[None]:
    """Convert torch's errors in a collective, whose cause is another rank."""
    try:
        yield
    except torch.AcceleratorError:
        raise  # a kernel of this rank has failed, of which the device tells only now
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TransportError(f"the ranks of the stage did not {what}: {reason}") from error
