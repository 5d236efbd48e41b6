"""The plot of a profile: each stage's staircase with its knee, and the time of decodes by rows."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from configs.output_files import picture_metadata
from configs.profiles import MeasuredStep, StepTable

PLOT_MARK = "tdpipe profile"
"""In the metadata of the plot, see `configs.output_files`."""
# The knee is the smallest step size with about the lowest cost per token, see
# engine.policies.temporal.topup.
KNEE_TOLERANCE = 0.08


def draw(table: StepTable, path: Path, title: str) -> None:
    """Write the plot to `path`; raises `OSError`."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    figure.suptitle(title)
    for stage, steps in enumerate(table.stages):
        _draw_staircase(left, stage, steps)
        _draw_decodes(right, stage, steps)
    left.set(title="prefill without context", xlabel="tokens", ylabel="ms")
    right.set(title="decode", xlabel="rows", ylabel="ms", xscale="log", yscale="log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120, metadata=picture_metadata(path, PLOT_MARK))
    finally:
        plt.close(figure)


def staircase(steps: Sequence[MeasuredStep]) -> dict[int, float]:
    """The seconds of prefills without context by tokens, from the step with the fewest rows."""
    found: dict[int, MeasuredStep] = {}
    for step in steps:
        if step.kind == "prefill" and not step.kv_tokens:
            least = found.setdefault(step.tokens, step)
            if step.rows < least.rows:
                found[step.tokens] = step
    return {tokens: found[tokens].seconds for tokens in sorted(found)}


def knee(stairs: dict[int, float]) -> int:
    """The smallest size with seconds per token within `KNEE_TOLERANCE` of the minimum."""
    limit = min(seconds / tokens for tokens, seconds in stairs.items()) * (1 + KNEE_TOLERANCE)
    return next(tokens for tokens, seconds in stairs.items() if seconds / tokens <= limit)


def _draw_staircase(axes: Axes, stage: int, steps: Sequence[MeasuredStep]) -> None:
    stairs = staircase(steps)
    if not stairs:
        return
    at = knee(stairs)
    milliseconds = [1000 * seconds for seconds in stairs.values()]
    (line,) = axes.plot(list(stairs), milliseconds, ".-", label=f"stage {stage}, knee at {at}")
    axes.plot([at], [1000 * stairs[at]], "o", color=line.get_color(), markersize=8)


def _draw_decodes(axes: Axes, stage: int, steps: Sequence[MeasuredStep]) -> None:
    curves: dict[int, dict[int, float]] = defaultdict(dict)
    for step in steps:
        if step.kind == "decode":
            curves[step.kv_tokens // step.rows][step.rows] = 1000 * step.seconds
    for context, curve in sorted(curves.items()):
        rows = sorted(curve)
        label = f"stage {stage}, {context} tokens of KV"
        axes.plot(rows, [curve[count] for count in rows], ".-", label=label)
