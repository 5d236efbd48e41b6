"""The timeline: draws a trace. `tdpipe timeline TRACE -o OUT.png [--from S] [--to S]`.

There is one track per stage, coloured by phase and white while the stage is idle, with the bubble
ratio at its end. Below the tracks are the KV blocks in use and the number of sequences. If several
steps share a column of pixels, their colours are mixed in proportion, with white for the idle part.
So short bubbles remain visible, and 100,000 steps are as legible as 100.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.output_files import check_outputs, picture_metadata
from engine.trace.trace_file import Gauges, Restart, Span, TraceError, read_trace
from wire.messages import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIMELINE_MARK = "tdpipe timeline"
"""In the metadata of every timeline, see `configs.output_files`."""
SUFFIXES = (".png", ".svg", ".pdf")
# The colours of Okabe and Ito, which can be distinguished with every kind of colour blindness.
COLOURS: dict[Phase, str] = {"prefill": "#E69F00", "decode": "#0072B2", "mixed": "#009E73"}
RESTART_COLOUR = "#CC79A7"
KV_COLOUR, LIVE_COLOUR, WAITING_COLOUR = "#999999", "#000000", "#D55E00"

# In inches; all tracks together are at most ALL_TRACKS high.
WIDTH, LEFT, RIGHT, TOP, BOTTOM, GAP = 14.0, 0.9, 1.2, 0.5, 0.6, 0.25
TRACK, ALL_TRACKS, PANEL = 0.5, 10.0, 1.2
DOTS_PER_INCH = 120
TRACK_FILL = 0.8  # part of the height of a track that a step takes
# Steps wider than this get an edge, to separate them from the previous one.
EDGED_PIXELS = 8
# If the peak of KV use is lower, the axis is scaled to the peak instead of 100 %.
LOW_KV_PERCENT = 25

Window = tuple[float, float]
"""Begin and end, in seconds since the run began."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tdpipe timeline`. Returns 0, or 1 after printing an error."""
    options = _parser().parse_args(argv)
    path: Path = options.output or options.trace.with_suffix(".png")
    try:
        trace = read_trace(options.trace)
        check_outputs({path: TIMELINE_MARK}, overwrite=options.overwrite)
        first, last = window_of(trace.spans)
        begin = first if options.begin is None else options.begin
        end = last if options.end is None else options.end
        title = options.trace.name if options.title is None else options.title
        draw(
            trace.spans,
            trace.gauges,
            path,
            title=title,
            window=(begin, end),
            restarts=trace.restarts,
        )
    except (TraceError, ImportError, OSError) as error:
        print(f"tdpipe: error: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


def draw(
    spans: Sequence[Span],
    gauges: Sequence[Gauges],
    path: Path,
    *,
    title: str = "",
    window: Window | None = None,
    restarts: Sequence[Restart] = (),
) -> None:
    """Draw the window (by default, all steps) to `path`, whose suffix is one of `SUFFIXES`.

    Raises `TraceError` if there is nothing to draw, `ImportError` without matplotlib, `OSError`.
    """
    from matplotlib.figure import Figure

    window = window or window_of(spans)
    if not window[0] < window[1]:
        raise TraceError(f"there is nothing to draw from {window[0]:g} s to {window[1]:g} s")
    tracks = _tracks_of(spans)
    tracks_height = min(TRACK * len(tracks), ALL_TRACKS)
    height = TOP + tracks_height + 2 * (GAP + PANEL) + BOTTOM
    figure = Figure((WIDTH, height), DOTS_PER_INCH)
    sequences = _add_panel(figure, BOTTOM, PANEL, window)
    kv = _add_panel(figure, BOTTOM + PANEL + GAP, PANEL, window)
    stages = _add_panel(figure, BOTTOM + 2 * (PANEL + GAP), tracks_height, window)
    stages.set_title(title, loc="left", fontweight="bold")
    sequences.set_xlabel("seconds since the run began")
    sequences.tick_params(labelbottom=True)
    _draw_tracks(stages, tracks, window)
    for axes in (stages, kv, sequences):
        _draw_restarts(axes, restarts, window, with_label=axes is stages)
    within = _within(gauges, window)
    _draw_kv(kv, within)
    _draw_sequences(sequences, within)
    figure.savefig(path, metadata=picture_metadata(path, TIMELINE_MARK))


def window_of(spans: Sequence[Span]) -> Window:
    """Return the window from the first begin to the last end. Raises `TraceError` without steps."""
    if not spans:
        raise TraceError("there are no steps in the trace")
    return min(span.began_at for span in spans), max(span.ended_at for span in spans)


def bubble_ratios(spans: Sequence[Span], window: Window) -> list[float]:
    """Return the part of the window in which each stage is idle."""
    return [track.bubble_ratio(window) for track in _tracks_of(spans)]


@dataclass(frozen=True, slots=True)
class _Track:
    """The steps of a stage in order, as columns [steps]; times in seconds."""

    phases: np.ndarray
    began_at: np.ndarray
    ended_at: np.ndarray

    def only(self, phase: Phase) -> "_Track":
        """Return the steps of one phase."""
        chosen = self.phases == phase
        return _Track(self.phases[chosen], self.began_at[chosen], self.ended_at[chosen])

    def busy_s(self, edges: np.ndarray) -> np.ndarray:
        """Return the seconds in steps between each edge and the next, [edges - 1]."""
        if not self.phases.size:
            return np.zeros(len(edges) - 1)
        done_s = np.cumsum(self.ended_at - self.began_at)
        before_s = np.concatenate(([0.0], done_s[:-1]))
        times = np.column_stack((self.began_at, self.ended_at)).ravel()
        return np.diff(np.interp(edges, times, np.column_stack((before_s, done_s)).ravel()))

    def bubble_ratio(self, window: Window) -> float:
        """Return the part of the window in which the stage is idle."""
        return 1 - float(self.busy_s(np.array(window))[0]) / (window[1] - window[0])


def _tracks_of(spans: Sequence[Span]) -> list[_Track]:
    stages = np.array([span.stage for span in spans])
    phases = np.array([span.phase for span in spans])
    times = np.array([(span.began_at, span.ended_at) for span in spans])
    order = np.argsort(times[:, 0], kind="stable")
    tracks = [order[stages[order] == stage] for stage in range(stages.max() + 1)]
    return [_Track(phases[track], times[track, 0], times[track, 1]) for track in tracks]


def _within(gauges: Sequence[Gauges], window: Window) -> list[Gauges]:
    """Return the gauges of the window, with the values at its begin and at its end."""
    begin, end = window
    inside = [gauge for gauge in gauges if begin < gauge.at < end]
    before = [gauge for gauge in gauges if gauge.at <= begin][-1:]
    return [
        *(replace(gauge, at=begin) for gauge in before),
        *inside,
        *(replace(gauge, at=end) for gauge in (before + inside)[-1:]),
    ]


def _add_panel(figure: "Figure", bottom: float, height: float, window: Window) -> "Axes":
    """Add axes over the whole width, `bottom` inches above the lower edge."""
    whole = figure.get_figheight()
    axes = figure.add_axes(
        (LEFT / WIDTH, bottom / whole, 1 - (LEFT + RIGHT) / WIDTH, height / whole)
    )
    axes.set_xlim(window)
    axes.tick_params(labelbottom=False)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _draw_tracks(axes: "Axes", tracks: Sequence[_Track], window: Window) -> None:
    edges = np.linspace(*window, round(axes.get_window_extent().width) + 1)
    half = TRACK_FILL / 2
    for stage, track in enumerate(tracks):
        top, bottom = stage - half, stage + half
        extent = (*window, bottom, top)
        axes.imshow(_blend(track, edges), extent=extent, aspect="auto", interpolation="none")
        wide = track.ended_at - track.began_at > EDGED_PIXELS * (edges[1] - edges[0])
        axes.vlines(track.began_at[wide], top, bottom, colors="black", alpha=0.4, linewidth=0.6)
        text = f"{track.bubble_ratio(window):.1%} bubble"
        axes.text(1.01, stage, text, transform=axes.get_yaxis_transform(), va="center")
    axes.set_xlim(window)
    axes.set_ylim(len(tracks) - 0.5, -0.5)
    axes.set_yticks(range(len(tracks)), [f"stage {stage}" for stage in range(len(tracks))])
    axes.spines["left"].set_visible(False)
    axes.tick_params(left=False)
    _add_legend(axes, tracks)


def _blend(track: _Track, edges: np.ndarray) -> np.ndarray:
    """Return the colour of each column: phases and white in proportion, [1, columns, 3]."""
    from matplotlib.colors import to_rgb

    image = np.ones((1, len(edges) - 1, 3))
    for phase, colour in COLOURS.items():
        share = track.only(phase).busy_s(edges) / np.diff(edges)
        image -= share[:, None] * (1 - np.array(to_rgb(colour)))
    return image.clip(0, 1)


def _draw_restarts(
    axes: "Axes", restarts: Sequence[Restart], window: Window, *, with_label: bool
) -> None:
    """Shade the time of each restart of the pipeline, and write its seconds beside the begin."""
    for restart in restarts:
        end = window[1] if restart.ready_at is None else min(restart.ready_at, window[1])
        begin = max(restart.lost_at, window[0])
        if begin > end:
            continue
        axes.axvspan(begin, end, color=RESTART_COLOUR, alpha=0.25, linewidth=0)
        axes.axvline(restart.lost_at, color=RESTART_COLOUR, linewidth=1)
        if with_label:
            took = (
                "" if restart.ready_at is None else f" {restart.ready_at - restart.lost_at:.1f} s"
            )
            axes.annotate(
                f"restart{took}",
                (begin, 0.5),
                (3, 0),  # points
                xycoords=axes.get_xaxis_transform(),
                textcoords="offset points",
                rotation="vertical",
                va="center",
                fontsize="small",
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
            )


def _add_legend(axes: "Axes", tracks: Sequence[_Track]) -> None:
    from matplotlib.patches import Patch

    present = {phase for track in tracks for phase in np.unique(track.phases)}
    handles = [Patch(color=COLOURS[phase], label=phase) for phase in COLOURS if phase in present]
    handles.append(Patch(facecolor="white", edgecolor="#999999", label="idle (paler: in part)"))
    axes.legend(handles=handles, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False)


def _draw_kv(axes: "Axes", gauges: Sequence[Gauges]) -> None:
    used = [100 * gauge.blocks_used / max(1, gauge.blocks_total) for gauge in gauges]
    axes.fill_between([gauge.at for gauge in gauges], used, step="post", color=KV_COLOUR)
    peak = max(used, default=0)
    axes.set_ylim(0, 100 if peak > LOW_KV_PERCENT else None)
    axes.text(1.01, 0.5, f"{peak:.1f}% peak", transform=axes.transAxes, va="center")
    axes.set_ylabel("KV used, %")


def _draw_sequences(axes: "Axes", gauges: Sequence[Gauges]) -> None:
    times = [gauge.at for gauge in gauges]
    live, waiting = [gauge.live for gauge in gauges], [gauge.waiting for gauge in gauges]
    axes.step(times, live, where="post", color=LIVE_COLOUR, label="live")
    axes.step(times, waiting, where="post", color=WAITING_COLOUR, label="waiting", linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("sequences")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tdpipe timeline", description="Draw a trace.")
    add = parser.add_argument
    add("trace", type=Path, help="file written by `tdpipe serve --trace` or `tdpipe simulate`")
    add("-o", "--output", type=picture, help=f"{', '.join(SUFFIXES)} [TRACE with suffix .png]")
    add("--from", dest="begin", type=float, metavar="S", help="begin in seconds [first step]")
    add("--to", dest="end", type=float, metavar="S", help="end in seconds [end of the last step]")
    add("--title", help="title of the picture [name of TRACE]")
    add("--overwrite", action="store_true", help="replace a file that is no timeline")
    return parser


def picture(text: str) -> Path:
    """Parse the path of a picture: its suffix is one of `SUFFIXES`."""
    path = Path(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"{text} must end with one of {', '.join(SUFFIXES)}")
    return path


if __name__ == "__main__":
    sys.exit(main())
