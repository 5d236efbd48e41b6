"""Events: when the work that was queued on a device before is done."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch


class Event(Protocol):
    """A mark in the queue of a device; one that was never recorded is done."""

    def record(self) -> None:
        """Mark the work that has been queued so far on the current stream."""
        ...

    def query(self) -> bool:
        """Whether that work is done, without waiting."""
        ...

    def synchronize(self) -> None:
        """Wait until that work is done."""
        ...


class Done:
    """The event of a device that has always finished, such as a CPU."""

    def record(self) -> None:
        """Do nothing."""

    def query(self) -> bool:
        """Return True."""
        return True

    def synchronize(self) -> None:
        """Return at once."""


DONE = Done()


def cuda_event() -> Event:
    """An event of the current GPU; threads that wait for it sleep."""
    event: Event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    return event


def event_of(device: torch.device) -> Event:
    """A new event of this device."""
    return cuda_event() if device.type == "cuda" else DONE


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Make torch raise `RuntimeError` in here where the host would wait for the GPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it does not notice all of them
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
