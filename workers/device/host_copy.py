"""The host copy: a small result of the device on its way to the host."""

import numpy as np
import torch
from torch import Tensor

from workers.device.events import DONE, Event, cuda_event


class HostCopy:
    """A copy of a tensor that is complete when the event is done."""

    __slots__ = ("_event", "_host")

    def __init__(self, host: Tensor, event: Event = DONE) -> None:
        self._host, self._event = host, event

    def is_done(self) -> bool:
        """Whether `numpy` returns without waiting. Raises `RuntimeError` if the device failed."""
        return self._event.query()

    def numpy(self) -> np.ndarray:
        """The numbers; waits for the device."""
        self._event.synchronize()
        numbers: np.ndarray = self._host.numpy()
        return numbers


def to_host(tensor: Tensor) -> HostCopy:
    """Start to copy a tensor to the host; on a CPU it is there already."""
    if not tensor.is_cuda:
        return HostCopy(tensor)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    event = cuda_event()
    event.record()
    return HostCopy(host, event)
