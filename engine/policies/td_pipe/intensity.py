"""Spatial-temporal intensity: when to switch from decode to prefill (TD-Pipe, section 3.5).

Spatial intensity is how well decoding uses the stages now: the rate of the present micro-batch over
the rate of a saturating one. Temporal intensity is how well a prefill phase would use their time:
the part of the phase that is not the bubble between short decode steps and the first prefills. The
decode phase ends when the spatial intensity is below the temporal.
"""

from collections.abc import Iterable

from engine.costs.cost_model import CostModel


def spatial_intensity(
    num_rows: float, cost: CostModel, saturating_rows: int, saturated_rows: int
) -> float:
    """Rate of a decode step of `num_rows` over that of `saturating_rows`, usually below 1.

    It is 1 from `saturated_rows` on. As in the paper's code, the rate comes from the profile of
    prefills, without the time to read KV.
    """
    if num_rows >= saturated_rows:
        return 1.0
    rows = max(1, round(num_rows))
    peak = saturating_rows / cost.linear_s(saturating_rows)
    return rows / cost.linear_s(rows) / peak


def temporal_intensity(prefills_s: Iterable[float], decode_s: float) -> float:
    """1 - bubble / total of a prefill phase of these prefills after decode steps of `decode_s`.

    The bubble is the longest prefill minus a decode step; both are in seconds of one stage. 0 if
    nothing would be admitted.
    """
    prefills = list(prefills_s)
    if not prefills:
        return 0.0
    bubble = max(0.0, max(prefills) - decode_s)
    return 1.0 - bubble / (sum(prefills) + bubble)
