"""A fake GPU for tests: copies and events wait in a queue until someone waits for them."""

from collections.abc import Callable

from torch import Tensor


class FakeGpu:
    """A device whose work is done late, in order: a buffer that is reused early shows."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], object]] = []
        self.num_copies = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queue a copy; it reads the source when it runs."""
        self.num_copies += 1
        self.queue.append(lambda: target.copy_(source))

    def event(self) -> "FakeEvent":
        """A new event."""
        return FakeEvent(self)

    def run(self, is_enough: Callable[[], bool] = lambda: False) -> None:
        """Do the queued work until it is enough."""
        while self.queue and not is_enough():
            self.queue.pop(0)()


class FakeEvent:
    """An event of the fake GPU."""

    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu, self._num_open = gpu, 0

    def record(self) -> None:
        """Queue the event."""
        self._num_open += 1
        self._gpu.queue.append(self._done)

    def query(self) -> bool:
        """Whether its work is done."""
        return not self._num_open

    def synchronize(self) -> None:
        """Do the work before it."""
        self._gpu.run(self.query)

    def _done(self) -> None:
        self._num_open -= 1
