"""The streams of a transport: where its sends and receives are queued.

NCCL begins an operation after the work that was queued before it on the current stream. On the
stream of the layers, a receive that is posted early would begin only after the step that runs then.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor


class Streams(Protocol):
    """Where a transport queues its operations."""

    def receiving(self) -> AbstractContextManager[object]:
        """Receives are posted in here, and their buffers allocated."""
        ...

    def sending(self) -> AbstractContextManager[object]:
        """Sends are posted in here; they begin after what the layers' stream has queued so far."""
        ...

    def take(self, buffer: Tensor) -> None:
        """Let the layers' stream use a received buffer."""
        ...

    def wait(self, work: Any) -> None:
        """Keep the thread waiting until a receive is done."""
        ...


class NoStreams:
    """Host memory, and devices that copy through it: everything happens in order."""

    def receiving(self) -> AbstractContextManager[object]:
        """Change nothing."""
        return nullcontext()

    def sending(self) -> AbstractContextManager[object]:
        """Change nothing."""
        return nullcontext()

    def take(self, buffer: Tensor) -> None:
        """Do nothing."""

    def wait(self, work: Any) -> None:
        """See `Streams`."""
        work.wait()


class CudaStreams:
    """A stream for each direction, as a send waits for its activations and a receive must not."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._receiving = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._sending = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def receiving(self) -> AbstractContextManager[object]:
        """See `Streams`."""
        return torch.cuda.stream(self._receiving)

    def sending(self) -> AbstractContextManager[object]:
        """See `Streams`."""
        self._sending.wait_stream(torch.cuda.current_stream(self._device))
        return torch.cuda.stream(self._sending)

    def take(self, buffer: Tensor) -> None:
        """See `Streams`: its memory is given to another receive only after the layers' work."""
        buffer.record_stream(torch.cuda.current_stream(self._device))

    def wait(self, work: Any) -> None:
        """See `Streams`; may run in any thread."""
        with torch.cuda.device(self._device), torch.cuda.stream(self._receiving):
            work.wait()  # lets the stream wait
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        event.synchronize()
