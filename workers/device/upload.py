"""The upload: the integers of a step from the host to the stage's device, in one copy.

On a GPU each copy costs some 10 us of launching, and one from memory that is not pinned waits for
all work before it. All arrays of a step are therefore packed into one pinned buffer.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from workers.device.events import Event, cuda_event

Arrays = Mapping[str, np.ndarray]
# Each array begins at a multiple of this: Triton compiles a variant of a kernel for each pointer
# that is aligned to 16 bytes or is not.
ALIGNMENT = 16
# More buffers than steps are in flight on one stage, so that a step hardly ever waits for one.
NUM_BUFFERS = 8
_FIRST_BYTES = 1 << 16


class Upload(Protocol):
    """Brings arrays of int32 and int64 to a device, as tensors of the same names."""

    def __call__(self, arrays: Arrays, into: Tensor | None = None) -> dict[str, Tensor]:
        """Return tensors on the device that the caller may use at once on the current stream.

        They lie in `into` (uint8, on the device) where it is given, and otherwise in new memory.
        """
        ...


def upload_to(device: torch.device) -> Upload:
    """The upload for this device."""
    return PackedUpload(device) if device.type == "cuda" else share


def share(arrays: Arrays, into: Tensor | None = None) -> dict[str, Tensor]:
    """The arrays themselves as tensors, for a device that computes in host memory."""
    assert into is None, "shared arrays are not copied"
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy one array without waiting; torch keeps its pinned memory until it has been read."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


class _Buffer:
    """A buffer of host memory, and the event of the last copy from it."""

    def __init__(self, event: Event) -> None:
        self.has_been_read = event
        self.resize(0, pinned=False)

    def resize(self, num_bytes: int, *, pinned: bool) -> None:
        """Take new memory."""
        self.memory = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=pinned)
        whole = self.memory.numpy()
        self._by_type = {kind: whole.view(kind) for kind in (np.int32, np.int64)}

    def write(self, arrays: Arrays, offsets: Mapping[str, int]) -> None:
        """Write each array at its offset in bytes."""
        for name, array in arrays.items():
            at = offsets[name] // array.itemsize
            self._by_type[array.dtype.type][at : at + len(array)] = array


class PackedUpload:
    """Packs the arrays into a pinned buffer, and copies it to the device without waiting.

    A buffer is written again only when the copy from it is done. The other arguments replace
    torch's operations in tests.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        make_event: Callable[[], Event] = cuda_event,
        copy: Callable[[Tensor, Tensor], None] | None = None,
        pinned: bool = True,
    ) -> None:
        self._device, self._pinned = device, pinned
        self._copy = copy or copy_without_waiting
        self._buffers = [_Buffer(make_event()) for _ in range(NUM_BUFFERS)]
        self._turn = 0

    def __call__(self, arrays: Arrays, into: Tensor | None = None) -> dict[str, Tensor]:
        """See `Upload`."""
        offsets, num_bytes = layout(arrays)
        if into is None:
            into = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        self.fill(arrays, into)
        return views(arrays, offsets, into)

    def fill(self, arrays: Arrays, into: Tensor) -> None:
        """The same without the tensors, which are where those of earlier arrays were."""
        offsets, num_bytes = layout(arrays)
        buffer = self._next_buffer(num_bytes)
        buffer.write(arrays, offsets)
        self._copy(into[:num_bytes], buffer.memory[:num_bytes])
        buffer.has_been_read.record()

    def _next_buffer(self, num_bytes: int) -> _Buffer:
        buffer = self._buffers[self._turn]
        self._turn = (self._turn + 1) % len(self._buffers)
        buffer.has_been_read.synchronize()
        if len(buffer.memory) < num_bytes:
            size = max(_FIRST_BYTES, 1 << (num_bytes - 1).bit_length())
            buffer.resize(size, pinned=self._pinned)
        return buffer


def copy_without_waiting(target: Tensor, source: Tensor) -> None:
    """Copy on the current stream of the GPU; the host goes on at once."""
    target.copy_(source, non_blocking=True)


def layout(arrays: Arrays) -> tuple[dict[str, int], int]:
    """Where in a packed buffer each array begins, and the size of the buffer, in bytes."""
    offsets, end = {}, 0
    for name, array in arrays.items():
        offsets[name] = end
        end += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, end


def views(arrays: Arrays, offsets: Mapping[str, int], packed: Tensor) -> dict[str, Tensor]:
    """The arrays' places in a packed buffer, as tensors of their types."""
    whole = len(packed) // ALIGNMENT * ALIGNMENT
    by_size = {kind.itemsize: packed[:whole].view(kind) for kind in (torch.int32, torch.int64)}
    return {
        name: by_size[array.itemsize].narrow(0, offsets[name] // array.itemsize, len(array))
        for name, array in arrays.items()
    }
