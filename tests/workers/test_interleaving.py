"""Interleaving: receives are posted with the plan, and a step is open until its last slice."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.workers.world import Ground
from wire.messages import Step
from workers import interleaving as module
from workers.comm.transport import Posted, Transport
from workers.interleaving import Interleaving


@dataclass
class FakeTransport:
    """The receives that were posted; a test tells what has arrived."""

    has_link: bool
    expected: list[tuple[int, int]] = field(default_factory=list)
    posted: Posted | None = None

    def follow(self, posted: Posted) -> None:
        """See `Transport`."""
        self.posted = posted

    def expect(self, step_id: int, num_tokens: int) -> None:
        """See `Transport`."""
        if self.has_link:
            self.expected.append((step_id, num_tokens))

    def arrive(self, step_id: int) -> None:
        """The activations of a step are here."""
        assert self.posted is not None
        self.posted(step_id, None)


def make_step(step_id: int, num_tokens: int) -> Step:
    ground = Ground()
    return ground.step([(ground.sequence([5] * num_tokens), num_tokens)], step_id)


@contextmanager
def made(*has_link: bool) -> Iterator[tuple[Interleaving, list[FakeTransport]]]:
    """The interleaving of a stage with these slices; the first stage's first one has no link."""
    transports = [FakeTransport(links) for links in has_link]
    given = [cast(Transport, transport) for transport in transports]
    with closing(Interleaving(given, 2, is_first=not has_link[0])) as interleaving:
        yield interleaving, transports


def taken(interleaving: Interleaving) -> Any:
    """Step id and slice of what runs next."""
    if not interleaving.has_next():
        return None
    chosen = interleaving.take()
    assert chosen is not None
    return chosen[0].step_id, chosen[1]


def test_receives_of_all_slices_are_posted_with_the_plan() -> None:
    with made(True, True) as (interleaving, (first, second)):
        interleaving.expect(make_step(1, 3))
        interleaving.expect(make_step(2, 4))
        assert first.expected == second.expected == [(1, 3), (2, 4)]
        assert taken(interleaving) is None
        assert len(interleaving) == 2


def test_a_later_slice_of_an_older_step_goes_first_once_it_has_arrived() -> None:
    with made(False, True) as (interleaving, (_, second)):
        for step_id in (1, 2, 3):
            interleaving.expect(make_step(step_id, 3))
        assert taken(interleaving) == (1, 0)
        assert taken(interleaving) == (2, 0)
        second.arrive(1)
        assert taken(interleaving) == (1, 1)
        assert taken(interleaving) == (3, 0)
        assert taken(interleaving) is None
        assert len(interleaving) == 2  # the second and the third still come round
        second.arrive(2)
        second.arrive(3)
        assert [taken(interleaving), taken(interleaving)] == [(2, 1), (3, 1)]
        assert len(interleaving) == 0


def test_a_step_too_many_waits_a_little_for_one_that_comes_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    with made(False, True) as (interleaving, (_, second)):
        for step_id in (1, 2, 3, 4):
            interleaving.expect(make_step(step_id, 3))
        for step_id in (1, 2):
            assert taken(interleaving) == (step_id, 0)
            now += 1.0
        assert taken(interleaving) is None  # there are two stages
        second.arrive(1)
        assert taken(interleaving) == (1, 1)
        now += 1.0
        # One of the two has left the first stage for good.
        assert taken(interleaving) == (3, 0)
        now += 1.0
        assert taken(interleaving) is None
        now += 0.101
        assert taken(interleaving) == (4, 0)
