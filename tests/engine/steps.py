"""The steps launched in a world, decoded."""

from tests.engine.world import World
from wire.messages import Step

Row = tuple[int, int]
"""Sequence id and number of tokens."""


def steps_of(world: World) -> list[Step]:
    """Every step launched so far."""
    return [m for _, _, answer in world.events for m in answer if isinstance(m, Step)]


def row_ids(step: Step) -> list[int]:
    """The sequence ids of the rows, in order."""
    return memoryview(step.sequence_ids).cast("q").tolist()


def row_tokens(step: Step) -> list[int]:
    """The number of tokens that each row feeds."""
    return memoryview(step.num_tokens).cast("i").tolist()


def rows_of(step: Step) -> list[Row]:
    """Both as pairs."""
    return list(zip(row_ids(step), row_tokens(step), strict=True))
