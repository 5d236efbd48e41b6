"""The recorder: every step once per stage, in the time of the engine."""

from array import array
from itertools import pairwise
from pathlib import Path

import pytest

from configs.config import EngineConfig
from configs.output_files import OutputFileError
from configs.schema.runtime import RuntimeConfig
from engine.loop import Loop
from engine.trace import recorder as recorder_module
from engine.trace.recorder import Recorder
from engine.trace.trace_file import Gauges, Restart, Span, Trace, read_trace
from wire.messages import EngineReady, Finished, Heartbeat, Phase, StageLost, Stats, Step

BEGAN_AT = 1000.0  # on the clock of the engine


def make_step(step_id: int, phase: Phase = "decode", num_rows: int = 2) -> Step:
    """A step of rows with two tokens each; the recorder uses no other fields."""
    ids, tokens = array("q", range(num_rows)), array("i", range(2 * num_rows))
    return Step(1, step_id, phase, ids.tobytes(), b"", b"", b"", tokens.tobytes(), b"")


def make_beat(
    stage: int, times: dict[int, tuple[float, float]], *, sent_at: float = 0.0
) -> Heartbeat:
    """A heartbeat that reports these steps, with begin and end on the clock of the stage."""
    return Heartbeat(
        stage,
        epoch=1,
        pid=1,
        progress=1,
        steps=1,
        busy_s=0.0,
        sent_at=sent_at,
        step_ids=array("q", times).tobytes(),
        began_at=array("d", [began_at for began_at, _ in times.values()]).tobytes(),
        ended_at=array("d", [ended_at for _, ended_at in times.values()]).tobytes(),
    )


class Recording:
    """A recorder of two stages, and its trace."""

    def __init__(self, path: Path, *, same_host: bool = True) -> None:
        self._path = path
        self.recorder = Recorder(path, 2, BEGAN_AT, same_host=same_host)

    def end(self) -> Trace:
        """Close the file and read it."""
        self.recorder.close()
        return read_trace(self._path)


@pytest.fixture
def here(tmp_path: Path) -> Recording:
    """The stages run on the host of the engine."""
    return Recording(tmp_path / "here.json")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Recording:
    """The stages have their own clocks."""
    return Recording(tmp_path / "elsewhere.json", same_host=False)


def test_a_step_is_written_for_each_stage_with_its_phase_rows_and_tokens(here: Recording) -> None:
    here.recorder.launch([Finished(1, "stop"), make_step(7, "prefill", 3)], 1000.5)
    here.recorder.observe(make_beat(0, {7: (1001.0, 1002.0)}), 1003.0)
    here.recorder.observe(make_beat(1, {7: (1002.5, 1003.0)}), 1003.5)
    assert here.end().spans == [
        Span(0, 7, "prefill", 3, 6, 1.0, 2.0),
        Span(1, 7, "prefill", 3, 6, 2.5, 3.0),
    ]


def test_a_restart_lasts_from_the_first_loss_until_the_pipeline_is_ready(here: Recording) -> None:
    ready = EngineReady(2, 10, 16, 160)
    here.recorder.launch([ready], 1000.1)  # the first start is no restart
    here.recorder.launch([make_step(7, "prefill")], 1000.5)
    here.recorder.lose(StageLost(1, "stage 1 died"), 1002.0)
    here.recorder.lose(StageLost(2, "stage 0 died as well"), 1003.0)
    here.recorder.launch([ready, make_step(8)], 1006.0)
    here.recorder.lose(StageLost(3, "again"), 1009.0)
    assert here.end().restarts == [Restart(2.0, 6.0, "stage 1 died"), Restart(9.0, None, "again")]


def test_steps_are_dropped_when_all_stages_have_reported_them(here: Recording) -> None:
    here.recorder.launch([make_step(7)], 1000.5)
    for stage in (0, 1, 0):
        here.recorder.observe(make_beat(stage, {7: (1001.0, 1002.0)}), 1003.0)
    assert [span.stage for span in here.end().spans] == [0, 1]


def test_steps_that_are_never_reported_do_not_accumulate(
    here: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "MAX_OPEN_STEPS", 10)
    here.recorder.launch([make_step(step_id) for step_id in range(30)], 1000.5)
    reported = {step_id: (1001.0 + step_id, 1002.0 + step_id) for step_id in range(30)}
    here.recorder.observe(make_beat(0, reported), 1100.0)
    assert [span.step_id for span in here.end().spans] == list(range(20, 30))


def test_a_heartbeat_without_steps_writes_nothing(here: Recording) -> None:
    here.recorder.observe(make_beat(0, {}), 1003.0)
    assert not here.end().spans


def test_gauges_come_from_the_stats_of_the_engine(here: Recording) -> None:
    stats = Stats(True, "decode", waiting=1, live=2, blocks_used=3, blocks_total=4, uptime_s=5.0)
    here.recorder.sample(stats)
    assert here.end().gauges == [Gauges(5.0, 3, 4, 1, 2)]


def test_a_sample_flushes_all_reported_steps_to_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    recorder = Recorder(path, 1, BEGAN_AT, same_host=True)
    recorder.launch([make_step(7)], 1000.5)
    recorder.observe(make_beat(0, {7: (1001.0, 1002.0)}), 1003.0)
    recorder.sample(Stats(True, "decode"))
    assert len(read_trace(path).spans) == 1
    recorder.close()


def test_the_clock_of_another_host_is_set_by_its_fastest_heartbeat(elsewhere: Recording) -> None:
    """The clock of stage 0 is 900 s behind; heartbeats take 50, 1 and 30 ms."""
    elsewhere.recorder.launch([make_step(7)], 1000.5)
    elsewhere.recorder.observe(make_beat(0, {}, sent_at=101.0), 1001.050)
    elsewhere.recorder.observe(make_beat(0, {}, sent_at=101.5), 1001.501)
    reported = {7: (101.6, 101.9)}
    elsewhere.recorder.observe(make_beat(0, reported, sent_at=102.0), 1002.030)
    (span,) = elsewhere.end().spans
    assert [span.began_at, span.ended_at] == pytest.approx([1.601, 1.901])


def test_steps_do_not_overlap_when_a_clock_offset_decreases(elsewhere: Recording) -> None:
    elsewhere.recorder.launch([make_step(step_id) for step_id in range(3)], 1000.5)
    elsewhere.recorder.observe(make_beat(0, {0: (1.0, 2.0)}, sent_at=2.0), 1003.0)
    later = {1: (2.0, 2.9), 2: (2.9, 3.5)}
    elsewhere.recorder.observe(make_beat(0, later, sent_at=3.5), 1003.6)
    spans = elsewhere.end().spans
    assert len(spans) == 3
    assert all(one.ended_at <= next_.began_at for one, next_ in pairwise(spans))
    assert spans[-1].ended_at == pytest.approx(3.6)


def test_a_full_disk_ends_the_trace_and_not_the_engine(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Loop(EngineConfig(), RuntimeConfig(runtime_dir=tmp_path, trace=Path("/dev/full"))) as loop:
        for _ in range(3):
            loop._send_stats()
    errors = [record.message for record in caplog.records]
    assert errors == ["the trace /dev/full ends here: [Errno 28] No space left on device"]


def test_another_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("[1, 2]")
    with pytest.raises(OutputFileError, match="choose another --trace"):
        Recorder(path, 2, BEGAN_AT, same_host=True)
    assert path.read_text() == "[1, 2]"
    path.unlink()
    for _ in range(2):
        Recorder(path, 2, BEGAN_AT, same_host=True).close()


def test_with_virtual_stages_a_step_is_written_for_each_slice(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    recorder = Recorder(path, 2, BEGAN_AT, same_host=True, num_slices=2)
    recorder.launch([make_step(7)], 1000.5)
    for at in (1001.0, 1002.0, 1003.0):  # the third is one too many
        for stage in (0, 1):
            recorder.observe(make_beat(stage, {7: (at, at + 1)}), 1005.0)
    recorder.close()
    assert [(span.stage, span.began_at) for span in read_trace(path).spans] == [
        (0, 1.0),
        (1, 1.0),
        (0, 2.0),
        (1, 2.0),
    ]
