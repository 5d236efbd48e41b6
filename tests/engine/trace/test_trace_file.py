"""The trace file: everything written is read back, also from an incomplete file."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from engine.trace.trace_file import (
    CHUNK_BYTES,
    Gauges,
    Span,
    Trace,
    TraceError,
    TraceWriter,
    read_trace,
)
from wire.messages import Phase


def make_span(
    stage: int, step_id: int, began_at: float, ended_at: float, phase: Phase = "decode"
) -> Span:
    """A step of three rows and five tokens."""
    return Span(stage, step_id, phase, 3, 5, began_at, ended_at)


SPANS = [
    make_span(0, 0, 0.25, 0.5, "prefill"),
    make_span(1, 0, 0.5, 0.75, "prefill"),
    make_span(0, 1, 0.5, 0.625, "mixed"),
    make_span(1, 1, 0.75, 0.875, "mixed"),
    make_span(0, 2**40, 1.0, 1.5),
]
GAUGES = [Gauges(0.25, 0, 100, 7, 0), Gauges(0.5, 40, 100, 5, 2), Gauges(0.75, 0, 100, 0, 0)]


def write(path: Path, num_stages: int = 2) -> None:
    """Write all of the above and two phases."""
    with TraceWriter(path, num_stages) as writer:
        writer.write_phase("prefill", 0.2)
        for gauges in GAUGES:
            writer.write_gauges(gauges)
        for span in SPANS:
            writer.write_span(span)
        writer.write_phase("decode", 1.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The path of the trace of a test."""
    return tmp_path / "trace.json"


def events(path: Path) -> list[dict[str, Any]]:
    """The events of the file, read as JSON."""
    read: list[dict[str, Any]] = json.loads(path.read_text())
    return read


def test_everything_written_is_read_back(path: Path) -> None:
    write(path)
    assert read_trace(path) == Trace(SPANS, GAUGES)


def test_the_file_has_the_trace_event_format(path: Path) -> None:
    write(path)
    tracks = {e["tid"]: e["args"]["name"] for e in events(path) if e["name"] == "thread_name"}
    assert list(tracks.values()) == ["engine", "stage 0", "stage 1"]
    steps = [event for event in events(path) if event["ph"] == "X"]
    assert [tracks[step["tid"]] for step in steps[:2]] == ["stage 0", "stage 1"]
    assert (steps[0]["name"], steps[0]["ts"], steps[0]["dur"]) == ("prefill", 250_000, 250_000)
    assert steps[0]["args"] == {"step": 0, "rows": 3, "tokens": 5}
    assert {step["name"] for step in steps} == {"prefill", "decode", "mixed"}
    counters = [event for event in events(path) if event["ph"] == "C"]
    assert [c["args"] for c in counters[2:4]] == [
        {"used": 40, "free": 60},
        {"waiting": 5, "live": 2},
    ]
    assert len({event["pid"] for event in events(path)}) == 1


def test_phases_follow_each_other_and_end_with_the_trace(path: Path) -> None:
    with TraceWriter(path, 1) as writer:
        writer.write_phase("prefill", 0.1)
        writer.write_phase("prefill", 0.2)
        writer.write_phase("decode", 0.3)
        writer.write_phase("decode", 0.4)
        writer.write_span(make_span(0, 1, 0.5, 0.6))
    phases = [(e["ph"], e["name"], e["ts"]) for e in events(path) if e["ph"] in "BE"]
    assert phases == [
        ("B", "prefill", 100_000),
        ("E", "prefill", 300_000),
        ("B", "decode", 300_000),
        ("E", "decode", 600_000),
    ]


def test_a_file_cut_off_anywhere_contains_all_complete_events(path: Path) -> None:
    write(path)
    whole = path.read_bytes()
    longest = 0
    for length in range(2, len(whole), 5):  # bytes
        path.write_bytes(whole[:length])
        spans = read_trace(path).spans
        assert spans == SPANS[: len(spans)]
        assert len(spans) >= longest
        longest = len(spans)
    assert longest == len(SPANS)


def test_the_file_on_disk_is_always_an_array_without_its_end(path: Path) -> None:
    with TraceWriter(path, 1) as writer:
        for step_id in range(3000):
            writer.write_span(make_span(0, step_id, step_id, step_id + 1))
            if step_id % 100 == 0:
                json.loads((path.read_text() or "[") + "]")
        assert path.stat().st_size > CHUNK_BYTES  # the buffer does not grow
        writer.flush()
        assert len(json.loads(path.read_text() + "]")) > 3000


def test_unchanged_gauges_are_not_written_again(path: Path) -> None:
    with TraceWriter(path, 1) as writer:
        for second in range(100):
            writer.write_gauges(Gauges(float(second), 1, 2, 3, 4 + second // 50))
    assert [gauges.at for gauges in read_trace(path).gauges] == [0.0, 50.0]


def test_adjacent_steps_are_adjacent_in_the_file(path: Path) -> None:
    times = [0.1 * step_id + step_id / 3 for step_id in range(100)]
    with TraceWriter(path, 1) as writer:
        for step_id, (began_at, ended_at) in enumerate(pairwise(times)):
            writer.write_span(make_span(0, step_id, began_at, ended_at))
    spans = read_trace(path).spans
    assert all(one.ended_at == next_.began_at for one, next_ in pairwise(spans))
    assert spans[-1].ended_at == pytest.approx(times[-1], abs=1e-6)


@pytest.mark.parametrize("content", [b"", b"{}", b"[", b'{"traceEvents": []}', b"\xff\x00"])
def test_a_file_that_is_not_a_trace_is_refused_in_one_line(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"trace.json is not a trace of tdpipe$"):
        read_trace(path)


def test_the_number_of_an_invalid_line_is_reported(path: Path) -> None:
    write(path)
    lines = path.read_text().splitlines(keepends=True)
    lines[11] = lines[11].replace("{", "", 1)
    path.write_text("".join(lines))
    with pytest.raises(TraceError, match=r"trace.json, line 12: [^\n]+$"):
        read_trace(path)


def test_an_unreadable_trace_is_reported(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read the trace"):
        read_trace(tmp_path)


def test_a_full_disk_is_an_error_and_the_file_can_be_closed() -> None:
    writer = TraceWriter(Path("/dev/full"), 1)
    with pytest.raises(OSError, match="No space left"):
        writer.flush()
    with pytest.raises(OSError, match="No space left"):
        writer.close()
    writer.close()
