"""What was launched in a world, read back from the packed steps."""

from tests.engine.world import World
from wire.messages import Step

Row = tuple[int, int]
"""Whose, and how many tokens."""


def steps_of(world: World) -> list[Step]:
    """Every step launched so far."""
    return [m for _, _, answer in world.events for m in answer if isinstance(m, Step)]


def row_ids(step: Step) -> list[int]:
    """The sequences of its rows, in order."""
    return memoryview(step.sequence_ids).cast("q").tolist()


def row_tokens(step: Step) -> list[int]:
    """How many tokens each row feeds."""
    return memoryview(step.num_tokens).cast("i").tolist()


def rows_of(step: Step) -> list[Row]:
    """Both side by side."""
    return list(zip(row_ids(step), row_tokens(step), strict=True))
