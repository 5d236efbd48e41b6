"""The timeline: steps in the colours of their phases, bubbles in white, at any scale."""

import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread

from engine.trace.trace_file import Gauges, Restart, Span, TraceError, TraceWriter
from simulator import timeline_plot
from simulator.timeline_plot import COLOURS, bubble_ratios, draw, main
from wire.messages import Phase

ROOT = Path(__file__).resolve().parents[2]
NUM_STAGES = 2


def make_span(stage: int, phase: Phase, began_at: float, ended_at: float) -> Span:
    """A step, of which only stage, phase and times matter here."""
    return Span(stage, 0, phase, 1, 1, began_at, ended_at)


SPANS = [
    make_span(0, "prefill", 0.0, 2.0),
    make_span(0, "decode", 4.0, 5.0),
    make_span(0, "mixed", 5.0, 9.0),
    make_span(1, "prefill", 2.0, 4.0),
    make_span(1, "decode", 5.0, 6.0),
    make_span(1, "mixed", 9.0, 10.0),
]
GAUGES = [Gauges(0.0, 10, 100, 3, 1), Gauges(4.0, 80, 100, 0, 4), Gauges(12.0, 0, 100, 0, 0)]


def track_pixels(path: Path, stage: int) -> np.ndarray:
    """The middle row of the track of a stage in the picture, [columns, 3]."""
    image = imread(path)[:, :, :3]
    row = (timeline_plot.TOP + (stage + 0.5) * timeline_plot.TRACK) * timeline_plot.DOTS_PER_INCH
    left, right = timeline_plot.LEFT, timeline_plot.WIDTH - timeline_plot.RIGHT
    columns = slice(*(round(inches * timeline_plot.DOTS_PER_INCH) for inches in (left, right)))
    pixels: np.ndarray = image[round(row), columns]
    return pixels


def share_of(pixels: np.ndarray, colour: str) -> float:
    """The part of the pixels with exactly this colour."""
    return float(np.all(np.abs(pixels - to_rgb(colour)) < 0.01, axis=1).mean())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the trace of a test."""
    path = tmp_path / "trace.json"
    with TraceWriter(path, NUM_STAGES) as writer:
        for span in SPANS:
            writer.write_span(span)
        for gauges in GAUGES:
            writer.write_gauges(gauges)
    return path


def test_time_without_a_step_is_a_bubble() -> None:
    assert bubble_ratios(SPANS, (0.0, 10.0)) == pytest.approx([0.3, 0.6])
    assert bubble_ratios(SPANS, (1.0, 4.5)) == pytest.approx([2 / 3.5, 1.5 / 3.5])


def test_steps_have_the_colour_of_their_phase_and_bubbles_are_white(tmp_path: Path) -> None:
    draw(SPANS, GAUGES, tmp_path / "out.png")
    for stage, shares in enumerate([(0.2, 0.1, 0.4, 0.3), (0.2, 0.1, 0.1, 0.6)]):
        pixels = track_pixels(tmp_path / "out.png", stage)
        for colour, share in zip((*COLOURS.values(), "white"), shares, strict=True):
            assert share_of(pixels, colour) == pytest.approx(share, abs=0.005)


def test_steps_narrower_than_a_pixel_colour_it_in_proportion(tmp_path: Path) -> None:
    """20,000 steps in 200 s; each of the two stages is busy for 5 ms of every 20."""
    spans = [make_span(i % NUM_STAGES, "decode", 0.01 * i, 0.01 * i + 0.005) for i in range(20_000)]
    draw(spans, [], tmp_path / "out.png")
    for stage in range(NUM_STAGES):
        darkness = 1 - track_pixels(tmp_path / "out.png", stage).mean(axis=0)
        full = 1 - np.array(to_rgb(COLOURS["decode"]))
        assert darkness == pytest.approx(0.25 * full, abs=0.01)


def test_only_the_window_is_drawn(tmp_path: Path) -> None:
    draw(SPANS, GAUGES, tmp_path / "out.png", window=(4.0, 6.0))
    pixels = track_pixels(tmp_path / "out.png", 0)
    assert share_of(pixels, COLOURS["decode"]) == pytest.approx(0.5, abs=0.005)
    assert share_of(pixels, COLOURS["mixed"]) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("num_stages", [1, 64])
def test_one_stage_or_many_are_drawn(num_stages: int, tmp_path: Path) -> None:
    ends = list(accumulate([0.1] * num_stages))
    spans = [make_span(stage, "decode", end - 0.1, end) for stage, end in enumerate(ends)]
    draw(spans, [], tmp_path / "out.png")
    assert imread(tmp_path / "out.png").shape[0] < 2000


def test_a_restart_is_labelled_with_its_seconds(tmp_path: Path) -> None:
    spans = [make_span(0, "decode", 0.0, 1.0), make_span(0, "decode", 5.0, 6.0)]
    restarts = [Restart(1.0, 4.5, "a stage died"), Restart(5.5, None, "again")]
    labelled, plain = tmp_path / "labelled.svg", tmp_path / "plain.svg"
    draw(spans, [], labelled, restarts=restarts)
    draw(spans, [], plain, restarts=[Restart(8.0, 9.0, "outside the window")])
    assert "<!-- restart 3.5 s -->" in labelled.read_text()
    assert "<!-- restart -->" in labelled.read_text()
    assert "restart" not in plain.read_text()


def test_the_restart_of_a_trace_is_drawn(path: Path, tmp_path: Path) -> None:
    with TraceWriter(path, 1) as trace:
        trace.write_span(make_span(0, "decode", 0.0, 1.0))
        trace.write_loss("a stage died", 1.0)
        trace.write_ready(3.0)
        trace.write_span(make_span(0, "decode", 3.0, 4.0))
    picture = tmp_path / "run.svg"
    assert main([str(path), "-o", str(picture)]) == 0
    assert "<!-- restart 2.0 s -->" in picture.read_text()


def test_a_picture_of_another_command_is_kept(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = path.with_suffix(".png")
    plot.write_bytes(b"a plot of tdpipe profile")
    assert main([str(path)]) == 1
    assert f"{plot} exists and another command wrote it" in capsys.readouterr().err
    assert plot.read_bytes() == b"a plot of tdpipe profile"
    assert main([str(path), "--overwrite"]) == 0
    assert main([str(path)]) == 0  # now it is a timeline


def test_the_command_writes_the_picture_beside_the_trace(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(path)]) == 0
    assert capsys.readouterr().out == f"{path.with_suffix('.png')}\n"
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_command_draws_a_window_as_an_svg(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.svg"
    assert main([str(path), "-o", str(out), "--from", "4", "--to", "6", "--title", "a < b"]) == 0
    assert "<svg" in out.read_text()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--from", "3", "--to", "2"], "there is nothing to draw from 3 s to 2 s"),
        (["-o", "/nowhere/out.png"], "No such file or directory"),
    ],
)
def test_an_error_is_reported_in_one_line(
    options: list[str], reason: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(path), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tdpipe: error: ")
    assert reason in error
    assert len(error.splitlines()) == 1


def test_a_trace_without_steps_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    TraceWriter(path, 1).close()
    assert main([str(path)]) == 1
    assert capsys.readouterr().err == "tdpipe: error: there are no steps in the trace\n"
    with pytest.raises(TraceError):
        draw([], [], tmp_path / "out.png")


def test_an_unknown_picture_format_is_refused(path: Path) -> None:
    with pytest.raises(SystemExit):
        main([str(path), "-o", "out.xyz"])


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never(path: Path) -> None:
    script = (
        "import sys; from simulator.timeline_plot import main;"
        "assert 'matplotlib' not in sys.modules;"
        f"main([{str(path)!r}]); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)
