"""Spatial-temporal intensity: decides when to switch from decode to prefill (TD-Pipe, section 3.5).

Spatial intensity is how well decoding uses the stages now: the rate of the current micro-batch over
the rate of a saturating one. Temporal intensity is how well a prefill phase would use their time:
the fraction of the phase without the bubble between short decode steps and the first prefills. The
decode phase ends when the spatial intensity falls below the temporal intensity.
"""

from collections.abc import Iterable

from engine.costs.cost_model import CostModel


def spatial_intensity(
    num_rows: float, cost: CostModel, saturating_rows: int, saturated_rows: int
) -> float:
    """The rate of a decode step of `num_rows` over the rate of `saturating_rows`; usually < 1.

    It is 1 at `saturated_rows` or more rows. As in the paper's code, the rate comes from the
    profile of prefills, without the time to read KV.
    """
    if num_rows >= saturated_rows:
        return 1.0
    rows = max(1, round(num_rows))
    peak = saturating_rows / cost.linear_s(saturating_rows)
    return rows / cost.linear_s(rows) / peak


def temporal_intensity(prefills_s: Iterable[float], decode_s: float) -> float:
    """1 - bubble / total seconds of a phase of these prefills after decode steps.

    The bubble is the longest prefill minus a decode step of `decode_s`; both are in seconds of one
    stage. The result is 0 if there are no prefills.
    """
    prefills = list(prefills_s)
    if not prefills:
        return 0.0
    bubble = max(0.0, max(prefills) - decode_s)
    return 1.0 - bubble / (sum(prefills) + bubble)
