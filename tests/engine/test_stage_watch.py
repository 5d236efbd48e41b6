"""The stage watch: the dead, the silent, who waits for nobody and who just works long."""

import os
import subprocess
import sys
from typing import Any

from engine.stage_watch import StageWatch
from wire.messages import Heartbeat


def make_watch(num_stages: int = 1, *, same_host: bool = True) -> StageWatch:
    """A look a second; silence counts after 5 s, a standstill after 60 s."""
    return StageWatch(num_stages, 1.0, 5.0, 60.0, same_host=same_host)


def beat(
    stage: int, progress: int, *, epoch: int = 1, pid: int | None = None, **more: Any
) -> Heartbeat:
    """A heartbeat of this very process, unless told otherwise."""
    more = {"steps": progress, "doing": "idle", **more}
    return Heartbeat(stage, epoch, pid or os.getpid(), progress, busy_s=0.0, **more)


def troubles(watch: StageWatch, seconds: int, *beats: Heartbeat) -> list[str]:
    """What is told in the looks of so many seconds, each after these same beats."""
    told = []
    for second in range(seconds):
        for each in beats:
            watch.observe(each, float(second))
        trouble = watch.find_trouble(1)
        told += [trouble] if trouble else []
    return told


def test_a_stage_that_beats_and_moves_is_not_lost() -> None:
    watch = make_watch()
    for second in range(200):
        assert not troubles(watch, 1, beat(0, progress=second))


def test_silence_is_noticed() -> None:
    watch = make_watch()
    watch.observe(beat(0, 1), 0.0)
    assert not troubles(watch, 5)
    assert troubles(watch, 1) == ["stage 0 was silent for 6.0 s"]


def test_a_watch_that_was_itself_held_up_blames_nobody() -> None:
    watch = make_watch()
    watch.observe(beat(0, 1), 0.0)
    watch.observe(beat(0, 2), 1000.0)
    assert not watch.find_trouble(1)
    watch = make_watch()
    watch.observe(beat(0, 1), 0.0)  # and the next look comes when it comes
    assert not watch.find_trouble(1)


def test_a_stage_that_waits_while_nobody_works_is_lost() -> None:
    idle, waits = beat(0, 7), beat(1, 6, doing="waits")
    assert not troubles(make_watch(), 4, idle, waits)
    told = troubles(make_watch(), 5, idle, waits)
    assert told == ["stage 1 waited for a neighbour for 5.0 s, and no stage computed"]


def test_a_stage_that_waits_for_one_that_works_long_is_not_lost() -> None:
    assert not troubles(make_watch(), 50, beat(0, 7, doing="computes"), beat(1, 6, doing="waits"))


def test_work_that_has_just_ended_is_no_reason_to_call_the_next_stage_lost() -> None:
    watch = make_watch()
    assert not troubles(watch, 20, beat(0, 7, doing="computes"), beat(1, 6, doing="waits"))
    assert not troubles(watch, 4, beat(0, 8), beat(1, 6, doing="waits"))


def test_a_stage_that_computes_without_end_is_lost() -> None:
    watch = make_watch()
    stuck = beat(1, 7, doing="computes")
    assert not troubles(watch, 60, beat(0, 3, doing="computes"), stuck)
    told = troubles(watch, 1, beat(0, 4), stuck)
    assert told == ["stage 1 has made no progress for 61.0 s"]


def test_a_new_life_begins_with_a_fresh_standstill() -> None:
    watch = make_watch()
    assert not troubles(watch, 50, beat(0, 7))
    watch.observe(beat(0, 7, epoch=2), 100.0)
    for _ in range(5):
        assert not watch.find_trouble(2)


def test_a_stage_that_is_never_heard_of_is_lost() -> None:
    """All begin to beat at the same time; one that stood still when the engine died never does."""
    watch = make_watch(2)
    assert not troubles(watch, 5, beat(1, 7))
    assert troubles(watch, 1, beat(1, 7)) == ["stage 0 has sent no heartbeat"]
    watch.observe(beat(1, 1, epoch=2), 0.0)
    assert not watch.find_trouble(2)


def test_a_stage_that_loads_may_be_held_up_for_longer() -> None:
    watch = make_watch()
    watch.observe(beat(0, 0, doing="loads"), 0.0)
    assert not troubles(watch, 30)
    assert troubles(watch, 1) == ["stage 0 was silent for 31.0 s"]
    assert not troubles(make_watch(), 500, beat(0, 0, doing="loads"))


def test_another_life_is_not_looked_at() -> None:
    watch = make_watch()
    watch.observe(beat(0, 1, epoch=2), 0.0)
    assert not troubles(watch, 1000)


def test_a_dead_process_is_noticed_at_the_next_look_on_the_same_host_only() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    for same_host in (True, False):
        watch = make_watch(same_host=same_host)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet asked how
        assert troubles(watch, 1, beat(0, 1, pid=child.pid)) == ["stage 0 died"] * same_host
    child.wait()
    assert troubles(make_watch(), 1, beat(0, 1, pid=child.pid)) == ["stage 0 died"]


def test_the_processes_of_a_life_are_known_until_others_have_come() -> None:
    watch = make_watch()
    watch.observe(beat(0, 1, pid=7), 0.0)
    watch.observe(beat(1, 1, pid=8), 0.0)
    assert watch.pids(1) == [7, 8]
    watch.observe(beat(0, 1, pid=9, epoch=2), 0.0)
    assert (watch.pids(1), watch.pids(2)) == ([8], [9])


def test_stages_are_told_in_their_order() -> None:
    watch = make_watch()
    watch.observe(beat(1, 5), 1.0)
    watch.observe(beat(0, 3), 2.0)
    assert [(s.stage, s.progress, s.heartbeat_age_s) for s in watch.stats(4.0, {})] == [
        (0, 3, 2.0),
        (1, 5, 3.0),
    ]
