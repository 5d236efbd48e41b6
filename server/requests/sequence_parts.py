"""The parts of a sequence's time: queue, prefill and decode, and the losses of its KV in them.

They are computed from the milestones that the engine has sent, after the sequence has ended.
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from wire.messages import MilestoneKind

Mark = tuple[MilestoneKind | Literal["engine_lost"], float]
"""A milestone, or the loss of the engine, and its time (seconds of the monotonic clock)."""
LOSSES = {
    "preempted": "preemption",
    "stages_lost": "stage restart",
    "engine_lost": "engine restart",
}


class Loss(NamedTuple):
    """A loss of the KV, until the sequence was as far as before; its tokens are fed from `fed_at`.

    The time before `fed_at` (None: it never came) was spent waiting, the time after it recomputing.
    """

    name: str
    began_at: float
    ended_at: float
    fed_at: float | None


class Part(NamedTuple):
    """A part of the time, with the losses that began in it."""

    name: Literal["queue", "prefill", "decode"]
    began_at: float
    ended_at: float
    losses: tuple[Loss, ...]


def parts_of(marks: Iterable[Mark], submitted_at: float, ended_at: float) -> list[Part]:
    """The parts of a sequence; those that it never reached are missing."""
    known = _in_order(marks, submitted_at)
    ended_at = max([ended_at, *(at for _, at in known)])
    fed_at = _first(known, "scheduled", ended_at)
    sampled_at = _first(known, "sampled", ended_at)
    losses = _losses(known, ended_at)
    bounds: list[tuple[Literal["queue", "prefill", "decode"], float, float]] = [
        ("queue", submitted_at, fed_at),
        ("prefill", fed_at, sampled_at),
        ("decode", sampled_at, ended_at),
    ]
    return [
        Part(name, begin, end, tuple(loss for loss in losses if begin <= loss.began_at < end))
        for name, begin, end in bounds
        if name == "queue" or begin < ended_at
    ]


def _in_order(marks: Iterable[Mark], begin: float) -> list[Mark]:
    """The marks, none earlier than the one before it: the loss of an engine is noticed late."""
    known: list[Mark] = []
    for kind, at in marks:
        begin = max(begin, at)
        known.append((kind, begin))
    return known


def _first(marks: Iterable[Mark], kind: str, default: float) -> float:
    return next((at for name, at in marks if name == kind), default)


def _losses(marks: Iterable[Mark], ended_at: float) -> list[Loss]:
    losses: list[Loss] = []
    was_fed, opened, fed_at = False, ("", 0.0), None
    for kind, at in marks:
        if kind in LOSSES and not opened[0]:
            opened, fed_at = (LOSSES[kind], at), None
        elif kind == "scheduled":
            if opened[0] and not was_fed:  # it has lost its place in the queue and nothing else
                losses.append(Loss(*opened, at, at))
                opened = ("", 0.0)
            was_fed, fed_at = True, at
        elif kind == "sampled" and opened[0]:
            losses.append(Loss(*opened, at, fed_at))
            opened = ("", 0.0)
    if opened[0]:
        losses.append(Loss(*opened, ended_at, fed_at))
    return losses
