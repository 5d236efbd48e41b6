"""The stage watch: dead, silent and stuck stages are lost, busy ones are not."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from daemon.processes.process_exits import ProcessExit
from engine.stage_time import StageTime
from engine.stage_watch import EXIT_CHECKS, StageWatch
from wire.messages import Heartbeat


def make_watch(num_stages: int = 1, *, same_host: bool = True, **more: Any) -> StageWatch:
    """One check per second; silence counts after 5 s, no progress after 60 s."""
    return StageWatch(num_stages, 1.0, 5.0, 60.0, same_host=same_host, **more)


def beat(
    stage: int, progress: int, *, epoch: int = 1, pid: int | None = None, **more: Any
) -> Heartbeat:
    """A heartbeat, by default of this process."""
    more = {"steps": progress, "doing": "idle", **more}
    return Heartbeat(stage, epoch, pid or os.getpid(), progress, busy_s=0.0, **more)


def troubles(watch: StageWatch, seconds: int, *beats: Heartbeat) -> list[str]:
    """The results of one check per second, each after these heartbeats."""
    found = []
    for second in range(seconds):
        for each in beats:
            watch.observe(each, float(second))
        trouble = watch.find_trouble(1)
        found += [trouble.reason] if trouble else []
    return found


def test_a_stage_with_heartbeats_and_progress_is_not_lost() -> None:
    watch = make_watch()
    for second in range(200):
        assert not troubles(watch, 1, beat(0, progress=second))


def test_silence_is_noticed() -> None:
    watch = make_watch()
    watch.observe(beat(0, 1), 0.0)
    assert not troubles(watch, 5)
    assert troubles(watch, 1) == ["stage 0 was silent for 6.0 s"]


def test_no_stage_is_lost_if_the_watch_itself_was_stopped() -> None:
    watch = make_watch()
    watch.observe(beat(0, 1), 0.0)
    watch.observe(beat(0, 2), 1000.0)
    assert not watch.find_trouble(1)
    watch = make_watch()
    watch.observe(beat(0, 1), 0.0)  # the next check may come any time later
    assert not watch.find_trouble(1)


def test_a_stage_that_waits_while_no_stage_computes_is_lost() -> None:
    idle, waits = beat(0, 7), beat(1, 6, doing="waits")
    assert not troubles(make_watch(), 4, idle, waits)
    found = troubles(make_watch(), 5, idle, waits)
    assert found == ["stage 1 waited for a neighbour for 5.0 s, and no stage computed"]


def test_a_stage_that_waits_for_a_long_computation_is_not_lost() -> None:
    assert not troubles(make_watch(), 50, beat(0, 7, doing="computes"), beat(1, 6, doing="waits"))


def test_after_a_long_computation_the_next_stage_is_not_lost_at_once() -> None:
    watch = make_watch()
    assert not troubles(watch, 20, beat(0, 7, doing="computes"), beat(1, 6, doing="waits"))
    assert not troubles(watch, 4, beat(0, 8), beat(1, 6, doing="waits"))


def test_a_stage_that_computes_without_progress_is_lost() -> None:
    watch = make_watch()
    stuck = beat(1, 7, doing="computes")
    assert not troubles(watch, 60, beat(0, 3, doing="computes"), stuck)
    found = troubles(watch, 1, beat(0, 4), stuck)
    assert found == ["stage 1 has made no progress for 61.0 s"]


def test_a_new_epoch_resets_the_time_without_progress() -> None:
    watch = make_watch()
    assert not troubles(watch, 50, beat(0, 7))
    watch.observe(beat(0, 7, epoch=2), 100.0)
    for _ in range(5):
        assert not watch.find_trouble(2)


def test_a_stage_that_never_sends_a_heartbeat_is_lost() -> None:
    """All stages begin to send together; one that hung when the engine died never does."""
    watch = make_watch(2)
    assert not troubles(watch, 5, beat(1, 7))
    found = troubles(watch, 1, beat(1, 7))
    assert found == ["stage 0 sent no heartbeat within 5 s of the group's first one"]
    watch.observe(beat(1, 1, epoch=2), 0.0)
    assert not watch.find_trouble(2)


def test_a_stage_that_loads_may_be_silent_for_longer() -> None:
    watch = make_watch()
    watch.observe(beat(0, 0, doing="loads"), 0.0)
    assert not troubles(watch, 30)
    assert troubles(watch, 1) == ["stage 0 was silent for 31.0 s"]
    assert not troubles(make_watch(), 500, beat(0, 0, doing="loads"))


def test_stages_of_another_epoch_are_not_checked() -> None:
    watch = make_watch()
    watch.observe(beat(0, 1, epoch=2), 0.0)
    assert not troubles(watch, 1000)


def test_time_in_which_a_stage_loads_or_has_no_work_is_no_time_in_which_it_waits() -> None:
    """Its first wait after a long time of either was taken for a broken connection."""
    for doing in ("loads", "idle"):
        watch = make_watch()
        assert not troubles(watch, 50, beat(0, 0, doing=doing))
        waits = beat(0, 0, doing="waits")
        assert not troubles(watch, 4, waits), doing
        assert troubles(watch, 1, waits) == [
            "stage 0 waited for a neighbour for 5.0 s, and no stage computed"
        ]


def test_waits_of_different_steps_do_not_add_up() -> None:
    watch = make_watch()
    for number in range(20):
        assert not troubles(watch, 3, beat(0, 7, steps=number, doing="waits"))


def test_the_time_of_loading_is_no_time_without_progress() -> None:
    watch = make_watch()
    assert not troubles(watch, 500, beat(0, 0, doing="loads"))
    assert not troubles(watch, 55, beat(0, 0))


def test_stages_that_are_starved_of_cpu_are_not_lost_until_they_wait_for_work() -> None:
    asked: list[Sequence[int]] = []
    starved = True

    def are_starved(pids: Sequence[int]) -> bool:
        asked.append(pids)
        return starved

    watch = make_watch(2, are_starved=are_starved)
    beats = beat(0, 7), beat(1, 6, doing="waits")
    assert not troubles(watch, 2, *beats)
    assert not asked  # it costs something, and nothing is suspicious yet
    assert not troubles(watch, 40, *beats)
    assert set(map(tuple, asked)) == {(os.getpid(), os.getpid())}
    assert watch.starved_s > 30
    starved = False
    assert troubles(watch, 5, *beats)[0].endswith("and no stage computed")


def test_a_silent_stage_that_is_starved_of_cpu_is_lost_only_as_one_without_progress() -> None:
    watch = make_watch(are_starved=lambda _: True)
    watch.observe(beat(0, 1), 0.0)
    assert not troubles(watch, 60)
    assert troubles(watch, 1) == ["stage 0 has made no progress for 61.0 s"]


def test_a_stage_that_cannot_begin_for_lack_of_cpu_is_not_lost() -> None:
    starved = [False] * 6 + [True] * 20
    watch = make_watch(2, are_starved=lambda _: starved.pop())
    assert not troubles(watch, 25, beat(1, 7, doing="loads"))
    assert troubles(watch, 1, beat(1, 7, doing="loads")) == [
        "stage 0 sent no heartbeat within 5 s of the group's first one"
    ]


def dead_process(code: str = "") -> "subprocess.Popen[bytes]":
    """A process that has ended, but has not been reaped."""
    child = subprocess.Popen([sys.executable, "-c", code])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    return child


def test_a_dead_process_is_noticed_on_the_same_host_only() -> None:
    """Without a trace of its end, more checks are made, in case that the record of it is late."""
    child = dead_process()
    child.wait()
    for same_host in (True, False):
        watch = make_watch(same_host=same_host)
        found = troubles(watch, EXIT_CHECKS, beat(0, 1, pid=child.pid))
        assert found == ["stage 0 died"] * same_host


def test_of_processes_that_are_not_reaped_a_killed_one_is_the_cause() -> None:
    ended, killed = dead_process("exit(1)"), dead_process("import os; os.kill(os.getpid(), 11)")
    with ended, killed:
        watch = make_watch(2)
        found = troubles(watch, 1, beat(0, 1, pid=ended.pid))
        assert found == ["stage 0 ended with code 1"]
        found = troubles(watch, 1, beat(0, 1, pid=ended.pid), beat(1, 1, pid=killed.pid))
        assert found == ["stage 1 was killed by SIGSEGV"]


def test_a_recorded_exit_is_noticed_at_once_and_named() -> None:
    with dead_process() as child:
        ended = ProcessExit(0, child.pid, -signal.SIGSEGV)
        watch = make_watch(2, find_exit=lambda pids: ended if child.pid in pids else None)
        watch.observe(beat(1, 1), 0.0)
        watch.observe(beat(0, 1, pid=child.pid), 0.0)
        trouble = watch.find_trouble(1)
    assert trouble is not None
    assert (trouble.stage, trouble.pid, trouble.cause) == (0, child.pid, "signal")
    assert (trouble.reason, trouble.code) == ("stage 0 was killed by SIGSEGV", "SIGSEGV")
    assert str(trouble) == f"stage 0 was killed by SIGSEGV (pid {child.pid})"


def test_the_processes_of_an_epoch_are_known_until_they_are_replaced() -> None:
    watch = make_watch()
    watch.observe(beat(0, 1, pid=7), 0.0)
    watch.observe(beat(1, 1, pid=8), 0.0)
    assert watch.pids(1) == [7, 8]
    watch.observe(beat(0, 1, pid=9, epoch=2), 0.0)
    assert (watch.pids(1), watch.pids(2)) == ([8], [9])


def test_stats_are_in_the_order_of_the_stages() -> None:
    watch = make_watch()
    watch.observe(beat(1, 5), 1.0)
    watch.observe(beat(0, 3), 2.0)
    times = StageTime(2, same_host=True)
    times.busy_s[1] = 0.5
    stats = watch.stats(4.0, {}, times)
    assert [(s.stage, s.progress, s.heartbeat_age_s, s.busy_s) for s in stats] == [
        (0, 3, 2.0, 0.0),
        (1, 5, 3.0, 0.5),
    ]


def test_a_silent_rank_beside_one_with_heartbeats_is_noticed() -> None:
    watch = make_watch(ranks_per_stage=2)
    watch.observe(beat(0, 1, tensor_rank=1), 0.0)
    lively = beat(0, 1)
    assert troubles(watch, 6, lively) == ["stage 0 rank 1 was silent for 6.0 s"]


def test_a_rank_that_never_sends_a_heartbeat_is_noticed_and_only_rank_0_has_figures() -> None:
    watch = make_watch(2, ranks_per_stage=2)
    beats = [beat(0, 1), beat(0, 1, tensor_rank=1), beat(1, 1)]
    (first, *_) = troubles(watch, 7, *beats)
    assert first == "stage 1 rank 1 sent no heartbeat within 5 s of the group's first one"
    stats = watch.stats(7.0, {}, StageTime(2, same_host=True))
    assert [stage.stage for stage in stats] == [0, 1]


def test_a_step_that_no_stage_answers_is_noticed_when_all_are_idle() -> None:
    """Its `Step` or its `StepDone` was on a connection that was closed."""
    watch = make_watch(2)
    idle = beat(0, 7), beat(1, 7)

    def check(awaited: int, *beats: Heartbeat) -> str:
        for each in beats:
            watch.observe(each, 0.0)
        trouble = watch.find_trouble(1, awaited)
        return trouble.reason if trouble else ""

    for _ in range(10):
        assert not check(-1, *idle), "nothing is awaited"
    for step_id in range(10):
        assert not check(step_id, *idle), "each one is answered at once"
    for _ in range(10):
        assert not check(20, beat(0, 7), beat(1, 7, doing="computes"))
    for _ in range(5):
        assert not check(20, *idle)
    assert check(20, *idle) == "no stage has run step 20 for 6.0 s, and all are idle"


def test_idle_stages_that_are_starved_may_have_a_step() -> None:
    watch = make_watch(1, are_starved=lambda _: True)
    for _ in range(20):
        watch.observe(beat(0, 7), 0.0)
        assert watch.find_trouble(1, 3) is None
