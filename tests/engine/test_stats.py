"""The watch over the stages: the dead, the silent, and the ones that stand still."""

import os
import subprocess
import sys

from engine.messages import Heartbeat
from engine.stats import StageWatch


def make_watch(*, same_host: bool = True) -> StageWatch:
    """Silence counts after 5 s, a standstill after 60 s."""
    return StageWatch(5.0, 60.0, same_host=same_host)


def beat(stage: int, progress: int, *, epoch: int = 1, pid: int | None = None) -> Heartbeat:
    """A heartbeat of this very process, unless told otherwise."""
    return Heartbeat(stage, epoch, pid or os.getpid(), progress, progress, 0.0)


def test_a_stage_that_beats_and_moves_is_not_lost() -> None:
    watch = make_watch()
    for second in range(200):
        watch.hear(beat(0, progress=second), float(second))
    assert watch.find_lost(1, 199.0) is None


def test_silence_is_noticed() -> None:
    watch = make_watch()
    watch.hear(beat(0, 1), 0.0)
    assert watch.find_lost(1, 4.9) is None
    lost = watch.find_lost(1, 5.1)
    assert lost is not None
    assert lost[1] == "stage 0 was silent for 5.1 s"


def test_a_stage_that_beats_without_progress_is_lost() -> None:
    watch = make_watch()
    for second in range(62):
        watch.hear(beat(0, progress=second), float(second))
        watch.hear(beat(1, progress=7), float(second))
    lost = watch.find_lost(1, 61.0)
    assert lost is not None
    assert lost[0].stage == 1
    assert "stood still for 61.0 s" in lost[1]


def test_a_new_life_begins_with_a_fresh_standstill() -> None:
    watch = make_watch()
    watch.hear(beat(0, 7), 0.0)
    watch.hear(beat(0, 7, epoch=2), 100.0)
    assert watch.find_lost(2, 101.0) is None


def test_another_life_is_not_looked_at() -> None:
    watch = make_watch()
    watch.hear(beat(0, 1), 0.0)
    assert watch.find_lost(2, 1000.0) is None


def test_a_dead_process_is_noticed_at_the_next_look_on_the_same_host_only() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for same_host in (True, False):
        watch = make_watch(same_host=same_host)
        watch.hear(beat(0, 1, pid=child.pid), 0.0)
        assert (watch.find_lost(1, 0.1) is not None) == same_host


def test_stages_are_told_in_their_order() -> None:
    watch = make_watch()
    watch.hear(beat(1, 5), 1.0)
    watch.hear(beat(0, 3), 2.0)
    assert [(s.stage, s.progress, s.heartbeat_age_s) for s in watch.stats(4.0, {})] == [
        (0, 3, 2.0),
        (1, 5, 3.0),
    ]
