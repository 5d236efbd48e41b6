"""The picture of a run: the distributions of its latencies, and its throughput over time."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.results.record import RUN_ENDED
from configs.output_files import picture_metadata

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLOT_MARK = "tdpipe bench"
"""In the metadata of every picture, see `configs.output_files`."""
SUFFIXES = (".png", ".svg", ".pdf")
# The colours of Okabe and Ito, which can be distinguished with every kind of colour blindness.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#777777"
SIZE, DOTS_PER_INCH = (13.0, 8.0), 110
NUM_BINS = 60
# The tail beyond this percentile is not drawn: one outlier would squeeze the rest.
DRAWN_PERCENT = 99.5
# How far an axis is stretched for a target.
MOST_STRETCH = 1.5
_PANELS = (
    ("ttft_s", "Time to first token (TTFT)", "requests"),
    ("tpot_s", "Time per output token (TPOT)", "requests"),
    ("itl_s", "Inter-token latency (ITL)", "gaps between pieces"),
)


def draw(report: Mapping[str, Any], path: Path, title: str) -> None:
    """Draw the report to `path`, whose suffix is one of `SUFFIXES`. Raises `OSError`."""
    from matplotlib.figure import Figure

    figure = Figure(SIZE, DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    axes = figure.subplots(2, 2)
    goodput = report["summary"]["goodput"]
    targets = goodput["targets"] if goodput else {}
    for panel, (name, label, unit) in zip(axes.flat, _PANELS, strict=False):
        _draw_latencies(panel, _values(report, name), targets.get(name))
        panel.set_title(label, loc="left")
        panel.set_ylabel(unit)
    _draw_timeline(axes[1][1], report["summary"]["timeline"], report["summary"]["duration_s"])
    figure.savefig(path, metadata=picture_metadata(path, PLOT_MARK))


def _values(report: Mapping[str, Any], name: str) -> np.ndarray:
    """The latency in ms of all answers, or of all gaps in them; see `bench.results.summary`."""
    whole = [r for r in report["requests"] if r["error_kind"] in (None, RUN_ENDED)]
    if name == "itl_s":
        values = [gap for request in whole for gap in request[name]]
    else:
        values = [request[name] for request in whole if request[name] is not None]
    return 1000 * np.array(values, dtype=float)


def _draw_latencies(axes: "Axes", values_ms: np.ndarray, target_s: float | None) -> None:
    """A histogram with its median and tail, and the share of the requests below each height."""
    axes.set_xlabel("ms")
    axes.spines[["top", "right"]].set_visible(False)
    if not values_ms.size:
        axes.text(0.5, 0.5, "no values", ha="center", va="center", transform=axes.transAxes)
        return
    most = float(np.percentile(values_ms, DRAWN_PERCENT)) or 1.0
    axes.hist(values_ms[values_ms <= most], bins=NUM_BINS, range=(0.0, most), color=BLUE, alpha=0.6)
    axes.set_xlim(0.0, 1.02 * most)
    for percent, style in ((50, "-"), (90, "--"), (99, ":")):
        value = float(np.percentile(values_ms, percent))
        label = f"p{percent} {_shown(value)} ms"
        axes.axvline(value, color=GREY, linestyle=style, linewidth=1.5, label=label)
    if target_s is not None:
        # A target far beyond the values is only in the legend: it would squeeze them.
        axes.axvline(1000 * target_s, color=ORANGE, label=f"target {_shown(1000 * target_s)} ms")
        if 1000 * target_s < MOST_STRETCH * most:
            axes.set_xlim(0.0, 1.02 * max(most, 1000 * target_s))
    axes.legend(loc="upper right", facecolor="white", framealpha=0.9, edgecolor="none")


def _draw_timeline(axes: "Axes", timeline: Mapping[str, Any], duration_s: float) -> None:
    tokens = timeline["output_tokens_per_s"]
    edges = np.minimum(timeline["interval_s"] * np.arange(len(tokens) + 1), duration_s)
    axes.stairs(tokens, edges, color=BLUE, fill=True, alpha=0.6, label="output tokens/s")
    axes.set_title("Throughput over time", loc="left")
    axes.set_xlabel("seconds since the run began")
    axes.set_ylabel("output tokens/s", color=BLUE)
    axes.set_xlim(0.0, duration_s)
    axes.set_ylim(bottom=0.0)
    axes.spines["top"].set_visible(False)
    beside = axes.twinx()
    beside.plot(edges[1:], timeline["open_requests"], color=GREEN, linewidth=1.5)
    beside.set_ylabel("open requests", color=GREEN)
    beside.set_ylim(bottom=0.0)
    beside.spines["top"].set_visible(False)


def _shown(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"
