"""The trace file: the steps of every stage over time, for ui.perfetto.dev and chrome://tracing.

The file has trace events in the JSON array format, one per line: a track for the phases of the
engine, a track per stage with an event per step, and counters for KV blocks and sequences. Both
viewers accept an array without its closing bracket, and only complete lines are written, so the
file of a killed process is valid. Times are in seconds since the run began, rounded in the file to
whole microseconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import msgspec

from wire.messages import Phase

TRACE_MARK = '"args":{"name":"tdpipe"}'
"""A text in the first line of every trace, see `configs.output_files`."""
# Bytes that are buffered before a write; `flush` and `close` write fewer.
CHUNK_BYTES = 1 << 16

_BEGIN, _END = b"[\n", b"\n]\n"
_BLOCKS, _SEQUENCES = "KV blocks", "sequences"
_LOST, _READY = "restart: pipeline lost", "restart: pipeline ready"
_ENGINE_TRACK, _FIRST_STAGE_TRACK = 1, 2
# Colour names of chrome://tracing; Perfetto assigns a colour to each phase automatically.
_COLOURS: dict[Phase, str] = {
    "prefill": "thread_state_iowait",
    "decode": "rail_response",
    "mixed": "thread_state_running",
}


class TraceError(Exception):
    """The file is not a trace, or cannot be drawn; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Span:
    """One step on one stage: the forward pass and, on the last stage, the sampling.

    Times are in seconds.
    """

    stage: int
    step_id: int
    phase: Phase
    num_rows: int
    num_tokens: int
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Gauges:
    """KV blocks and sequences from `at` (seconds) until the next gauges."""

    at: float
    blocks_used: int
    blocks_total: int
    waiting: int
    live: int


@dataclass(frozen=True, slots=True)
class Restart:
    """The pipeline was lost at `lost_at` and ready again at `ready_at`, None if never (seconds)."""

    lost_at: float
    ready_at: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Trace:
    """The contents of a trace file, in file order."""

    spans: list[Span]
    gauges: list[Gauges]
    restarts: list[Restart] = field(default_factory=list)


class TraceWriter:
    """Writes a trace to `path`, replacing an existing file. Every method may raise `OSError`."""

    def __init__(self, path: Path, num_stages: int) -> None:
        self._encoder = msgspec.json.Encoder()
        self._file = path.open("wb", buffering=0)
        self._chunk = bytearray(_BEGIN)
        self._separator = b""
        self._newest_us = 0
        self._phase: Phase | None = None
        self._gauges: Gauges | None = None
        self._add(_Meta("process_name", {"name": "tdpipe"}))
        self._name_track(_ENGINE_TRACK, "engine")
        for stage in range(num_stages):
            self._name_track(_FIRST_STAGE_TRACK + stage, f"stage {stage}")

    def write_span(self, span: Span) -> None:
        """Write a step to the track of its stage; spans of a stage are ordered and disjoint."""
        began_us, ended_us = self._microseconds(span.began_at), self._microseconds(span.ended_at)
        args = _StepArgs(span.step_id, span.num_rows, span.num_tokens)
        track = _FIRST_STAGE_TRACK + span.stage
        self._add(
            _Slice(span.phase, began_us, ended_us - began_us, track, _COLOURS[span.phase], args)
        )

    def write_gauges(self, gauges: Gauges) -> None:
        """Write the counters at `gauges.at`, unless none has changed."""
        if self._gauges is not None and _figures(gauges) == _figures(self._gauges):
            return
        self._gauges = gauges
        now_us, free = self._microseconds(gauges.at), gauges.blocks_total - gauges.blocks_used
        self._add(_Counter(_BLOCKS, now_us, {"used": gauges.blocks_used, "free": free}))
        self._add(_Counter(_SEQUENCES, now_us, {"waiting": gauges.waiting, "live": gauges.live}))

    def write_phase(self, phase: Phase, at: float) -> None:
        """Write the phase of the engine that begins at `at`, unless it is unchanged."""
        if phase == self._phase:
            return
        now_us = self._microseconds(at)
        self._end_phase(now_us)
        self._add(_Begin(phase, now_us, _COLOURS[phase]))
        self._phase = phase

    def write_loss(self, reason: str, at: float) -> None:
        """Write that the pipeline was lost at `at`; the phase of the engine ends."""
        now_us = self._microseconds(at)
        self._end_phase(now_us)
        self._phase = None
        self._add(_Instant(_LOST, now_us, {"reason": reason}))

    def write_ready(self, at: float) -> None:
        """Write that the pipeline is ready again."""
        self._add(_Instant(_READY, self._microseconds(at), {}))

    def flush(self) -> None:
        """Write the buffered events to the file."""
        rest = memoryview(bytes(self._chunk))
        self._chunk.clear()
        while rest:
            rest = rest[self._file.write(rest) :]

    def close(self) -> None:
        """Close the array and the file. Further calls do nothing."""
        if self._file.closed:
            return
        try:
            self._end_phase(self._newest_us)
            self._chunk += _END
            self.flush()
        finally:
            self._file.close()

    def _end_phase(self, now_us: int) -> None:
        if self._phase is not None:
            self._add(_End(self._phase, now_us))

    def _name_track(self, track: int, name: str) -> None:
        self._add(_Meta("thread_name", {"name": name}, track))
        self._add(_Meta("thread_sort_index", {"sort_index": track}, track))

    def _add(self, event: "_Event") -> None:
        self._chunk += self._separator + self._encoder.encode(event)
        self._separator = b",\n"
        if len(self._chunk) >= CHUNK_BYTES:
            self.flush()

    def _microseconds(self, seconds: float) -> int:
        """Round to whole microseconds; rounding every time keeps spans in order and adjacent."""
        microseconds = round(seconds * 1e6)
        self._newest_us = max(self._newest_us, microseconds)
        return microseconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_trace(path: Path) -> Trace:
    """Read the file of a `TraceWriter`, which may be incomplete. Raises `TraceError`."""
    trace = Trace([], [])
    figures = dict.fromkeys(("used", "free", "waiting", "live"), 0)
    for event in _read_events(path):
        if isinstance(event, _Slice):
            trace.spans.append(_span(event))
        elif isinstance(event, _Counter):
            figures |= event.args
            if event.name == _SEQUENCES:  # the second of the two
                trace.gauges.append(_gauges(event.ts, figures))
        elif isinstance(event, _Instant):
            _add_restart(trace.restarts, event)
    return trace


class _StepArgs(msgspec.Struct, frozen=True):
    step: int
    rows: int
    tokens: int


class _Event(msgspec.Struct, frozen=True, tag_field="ph"):
    """An event of the trace event format: `ph` is its type, `tid` its track."""


class _Meta(_Event, frozen=True, tag="M"):
    name: str
    args: dict[str, str | int]
    tid: int = _ENGINE_TRACK
    pid: int = 1


class _Slice(_Event, frozen=True, tag="X"):
    name: Phase
    ts: int
    dur: int
    tid: int
    cname: str
    args: _StepArgs
    pid: int = 1


class _Begin(_Event, frozen=True, tag="B"):
    name: Phase
    ts: int
    cname: str
    tid: int = _ENGINE_TRACK
    pid: int = 1


class _End(_Event, frozen=True, tag="E"):
    name: Phase
    ts: int
    tid: int = _ENGINE_TRACK
    pid: int = 1


class _Instant(_Event, frozen=True, tag="i"):
    name: str
    ts: int
    args: dict[str, str]
    tid: int = _ENGINE_TRACK
    s: str = "p"  # a line through all tracks of the process
    pid: int = 1


class _Counter(_Event, frozen=True, tag="C"):
    name: str
    ts: int
    args: dict[str, int]
    pid: int = 1


def _read_events(path: Path) -> Iterator[_Event]:
    decoder = msgspec.json.Decoder(_Meta | _Slice | _Begin | _End | _Instant | _Counter)
    try:
        with path.open("rb") as file:
            if file.readline() != _BEGIN:
                raise TraceError(f"{path} is not a trace of tdpipe")
            for number, line in enumerate(file, start=2):
                if line == _END.lstrip():
                    return
                try:
                    yield decoder.decode(line.rstrip(b",\n"))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    if line.endswith(b"\n"):
                        raise TraceError(f"{path}, line {number}: {error}") from error
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error}") from error


def _add_restart(restarts: list[Restart], event: _Instant) -> None:
    """Add the restart that begins with this event, or complete the one that ends with it."""
    at = event.ts / 1e6
    if event.name == _LOST:
        restarts.append(Restart(at, None, event.args.get("reason", "")))
    elif restarts and restarts[-1].ready_at is None:
        restarts[-1] = replace(restarts[-1], ready_at=at)


def _span(event: _Slice) -> Span:
    step, stage = event.args, event.tid - _FIRST_STAGE_TRACK
    began_at, ended_at = event.ts / 1e6, (event.ts + event.dur) / 1e6
    return Span(stage, step.step, event.name, step.rows, step.tokens, began_at, ended_at)


def _gauges(at_us: int, figures: dict[str, int]) -> Gauges:
    used = figures["used"]
    total = used + figures["free"]
    return Gauges(at_us / 1e6, used, total, figures["waiting"], figures["live"])


def _figures(gauges: Gauges) -> tuple[int, ...]:
    return gauges.blocks_used, gauges.blocks_total, gauges.waiting, gauges.live
