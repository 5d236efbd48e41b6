"""GC tuning: the main loop collects, and what it must find is found."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from daemon import gc_tuning
from daemon.gc_tuning import GcTuning


class Thing:
    """Holds itself, so that its reference count never falls to nothing."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Restore the collector of the tests' own process."""
    yield
    gc.unfreeze()
    gc.enable()


def test_new_garbage_is_collected_at_once() -> None:
    collector = GcTuning()
    assert not gc.isenabled()
    thing = weakref.ref(Thing())
    assert thing() is not None
    collector.tidy()
    assert thing() is None


def test_old_garbage_is_collected_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(gc_tuning.time, "monotonic", lambda: now[0])
    collector = GcTuning()
    kept = Thing()
    thing = weakref.ref(kept)
    collector.tidy()
    del kept
    collector.tidy()
    assert thing() is not None
    now[0] = gc_tuning.FULL_INTERVAL_S
    collector.tidy()
    assert thing() is None
