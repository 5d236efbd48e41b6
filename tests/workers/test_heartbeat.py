"""The heartbeat: the stage's counters, and each of its steps, once."""

import threading
from pathlib import Path

import pytest

from wire.messages import FromStage, Heartbeat
from wire.sockets import Hub
from workers.heartbeat import MAX_SPANS, HeartbeatThread, Progress


def spans_of(beat: Heartbeat) -> list[tuple[int, float, float]]:
    """The steps that a beat reports, with their begins and ends."""
    columns = (
        memoryview(beat.step_ids).cast("q"),
        memoryview(beat.began_at).cast("d"),
        memoryview(beat.ended_at).cast("d"),
    )
    return list(zip(*columns, strict=True))


def heart_of(progress: Progress) -> HeartbeatThread:
    """Stage 3's heartbeat thread, which is not started."""
    return HeartbeatThread("ipc:///nowhere", 3, 7, progress)


def test_a_beat_reports_what_was_counted() -> None:
    progress = Progress(iterations=5)
    progress.count_step(1, 10.0, 10.5)
    progress.count_step(2, 11.0, 11.25)
    beat = heart_of(progress).make_beat()
    assert (beat.stage, beat.epoch, beat.progress) == (3, 7, 5)
    assert (beat.steps, beat.busy_s) == (2, 0.75)


def test_a_beat_reports_what_is_still_computed_or_loaded_beside_the_main_thread() -> None:
    progress = Progress(doing="waits")
    heart = heart_of(progress)
    assert heart.make_beat().doing == "waits"
    progress.device_doing = lambda: "computes"
    assert heart.make_beat().doing == "computes"
    progress.is_loading = True
    assert heart.make_beat().doing == "loads"


def test_a_device_that_waits_for_its_input_does_not_compute() -> None:
    progress = Progress(doing="idle", device_doing=lambda: "waits")
    heart = heart_of(progress)
    assert heart.make_beat().doing == "waits"
    progress.doing = "computes"  # the main thread launches, or compiles, the next step
    assert heart.make_beat().doing == "computes"


def test_each_step_is_reported_once_and_adds_up_to_the_busy_time() -> None:
    progress = Progress()
    heart = heart_of(progress)
    progress.count_step(1, 10.0, 10.5)
    progress.count_step(2**40, 11.0, 11.25)
    beat = heart.make_beat()
    assert spans_of(beat) == [(1, 10.0, 10.5), (2**40, 11.0, 11.25)]
    assert sum(ended_at - began_at for _, began_at, ended_at in spans_of(beat)) == beat.busy_s
    assert not spans_of(heart.make_beat())


@pytest.mark.parametrize("exact", [True, False])
def test_a_beat_says_whether_its_times_are_exact(exact: bool) -> None:
    heart = HeartbeatThread("ipc:///nowhere", 3, 7, Progress(), exact)
    assert heart.make_beat().exact == exact


def test_unreported_steps_are_limited_and_the_oldest_are_forgotten() -> None:
    progress = Progress()
    for step_id in range(MAX_SPANS + 10):
        progress.count_step(step_id, float(step_id), step_id + 0.5)
    beat = heart_of(progress).make_beat()
    assert beat.steps == MAX_SPANS + 10
    assert [step_id for step_id, _, _ in spans_of(beat)] == list(range(10, MAX_SPANS + 10))


def test_a_beat_that_counts_a_step_has_its_span_at_any_moment() -> None:
    progress = Progress()
    heart = heart_of(progress)

    def count() -> None:
        for step_id in range(4000):
            progress.count_step(step_id, float(step_id), step_id + 0.5)

    counter = threading.Thread(target=count)
    counter.start()
    num_spans = 0
    while counter.is_alive() or progress.spans:
        beat = heart.make_beat()
        num_spans += len(spans_of(beat))
        assert num_spans >= beat.steps
    counter.join()
    assert num_spans == 4000


def test_beats_come_by_themselves(tmp_path: Path) -> None:
    progress = Progress()
    progress.count_step(1, 10.0, 10.5)
    endpoint = f"ipc://{tmp_path}/stages.sock"
    with Hub[FromStage](endpoint, FromStage) as hub, HeartbeatThread(endpoint, 0, 1, progress):
        assert hub.socket.poll(10_000)
        ((peer, beat),) = hub.drain()
    assert peer == "heartbeat-0"
    assert isinstance(beat, Heartbeat)
    assert spans_of(beat) == [(1, 10.0, 10.5)]
