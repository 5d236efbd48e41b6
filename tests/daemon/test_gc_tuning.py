"""Garbage is looked for when the main loop says so, and found."""

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
    """The tests' own process has its collector back."""
    yield
    gc.unfreeze()
    gc.enable()


def test_what_is_new_is_looked_through_at_once() -> None:
    collector = GcTuning()
    assert not gc.isenabled()
    thing = weakref.ref(Thing())
    assert thing() is not None
    collector.tidy()
    assert thing() is None


def test_what_has_lived_for_a_while_is_looked_through_in_the_end(
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
