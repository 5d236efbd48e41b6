"""Stage losses: the cause of each, as the log and the metrics name it."""

import pytest

from daemon.processes.process_exits import TORCHRUN, ProcessExit
from engine.stage_losses import LossCounter, Trouble
from wire.messages import RankExit, StageFailed, StageLosses

CASES = [
    (ProcessExit(2, 7, -9), (2, "signal", "SIGKILL")),
    (ProcessExit(2, 7, -9, is_oom=True), (2, "oom_killer", "SIGKILL")),
    (ProcessExit(12, 7, -40), (12, "signal", "signal 40")),
    (ProcessExit(0, 7, 3), (0, "exit", "3")),
    (ProcessExit(3, 7, -11, tensor_rank=1), (3, "signal", "SIGSEGV")),
    (ProcessExit(TORCHRUN, 7, -6), (-1, "signal", "SIGABRT")),
]


@pytest.mark.parametrize(("ended", "expected"), CASES)
def test_an_exit_is_named(ended: ProcessExit, expected: tuple[int, str, str]) -> None:
    trouble = Trouble.of_exit(ended)
    assert (trouble.stage, trouble.cause, trouble.code) == expected
    assert trouble.pid == 7


def test_an_exit_on_another_node_is_named() -> None:
    trouble = Trouble.of_node(RankExit(1, 1, 7, -9, True))
    assert (trouble.stage, trouble.cause, trouble.code, trouble.pid) == (
        1,
        "oom_killer",
        "SIGKILL",
        7,
    )
    assert trouble.reason.startswith("stage 1 rank 1 was killed by SIGKILL")


def test_the_oom_killer_is_named_in_the_log() -> None:
    assert str(Trouble.of_exit(CASES[1][0])) == (
        "stage 2 was killed by SIGKILL of the kernel's OOM killer (out of memory) (pid 7)"
    )


@pytest.mark.parametrize(("is_oom", "cause"), [(True, "out_of_memory"), (False, "exception")])
def test_an_exception_is_named(*, is_oom: bool, cause: str) -> None:
    trouble = Trouble.of_failure(StageFailed(1, 4, 9, "boom", False, is_oom, 77))
    assert (trouble.stage, trouble.pid, trouble.cause, trouble.code) == (1, 77, cause, "")
    assert trouble.reason == "stage 1 failed: boom"


def test_losses_are_counted_by_stage_cause_and_code_and_the_newest_is_kept() -> None:
    counter = LossCounter()
    for ended, _ in [*CASES, CASES[0]]:
        counter.count(Trouble.of_exit(ended), 1000.0)
    counter.count(Trouble("the stages died"), 2000.0)
    counts = {(each.stage, each.cause, each.code): each.count for each in counter.figures()}
    assert counts == {expected: 1 + (expected == CASES[0][1]) for _, expected in CASES} | {
        (-1, "other", ""): 1
    }
    assert StageLosses(2, "signal", "SIGKILL", 2) in counter.figures()
    assert counter.last is not None
    assert (counter.last.stage, counter.last.pid, counter.last.at) == (-1, 0, 2000.0)
