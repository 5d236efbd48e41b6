"""Cost models for tests: staircases whose steps are known."""

from itertools import accumulate

from hypothesis import strategies as st

from engine.costs.cost_model import TABLE_TOKENS, CostModel

Stair = tuple[int, float]
"""(the most tokens of a stair, its seconds)."""


def stairs(*steps: Stair) -> CostModel:
    """Flat stairs, each from just beyond the end of the previous one."""
    begins = [1, *(end + 1 for end, _ in steps)]
    points = {n: s for begin, (end, s) in zip(begins, steps, strict=False) for n in (begin, end)}
    return CostModel(list(points), list(points.values()))


@st.composite
def staircases(draw: st.DrawFn) -> list[Stair]:
    """Stairs of any width, each higher than the noise tolerance; the last one is infinite."""
    widths = draw(st.lists(st.integers(1, 300), max_size=8))
    factors = draw(st.lists(st.floats(1.03, 3.0), min_size=len(widths) + 1, max_size=9))
    seconds = list(accumulate(factors, float.__mul__))
    return list(zip([*accumulate(widths), TABLE_TOKENS], seconds, strict=False))
