"""The transport between real processes: the right step arrives, and nothing else ever does."""

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.workers import neighbours
from tests.workers.forked import FORKED

PATIENCE_S = 60.0


def play(name: str, num_stages: int, folder: Path, num_slices: int = 1) -> list[str]:
    """Let the stages play a part of `neighbours.py`; what each says, the last stage first."""
    with ExitStack() as stack:
        stages = []
        for stage in range(num_stages):
            test, theirs = FORKED.Pipe()
            arguments = (stage, num_stages, f"{folder}/store", name, theirs, num_slices)
            process = FORKED.Process(target=neighbours.main, args=arguments)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(test.close)
            stages.append((process, test))
        said = []
        for process, test in reversed(stages):
            assert test.poll(PATIENCE_S), "it says nothing"
            try:
                said.append(test.recv())
            except EOFError:
                process.join(PATIENCE_S)
                said.append(f"it ended with {process.exitcode}")
        return said


@pytest.mark.parametrize("num_stages", [2, 3])
def test_each_step_arrives_as_itself_through_all_stages(num_stages: int, tmp_path: Path) -> None:
    assert play("relay", num_stages, tmp_path) == ["well"] * num_stages


def test_large_steps_and_large_ids_arrive_as_they_are(tmp_path: Path) -> None:
    assert play("large_step_ids", 2, tmp_path) == ["well", "well"]


def test_a_tensor_of_another_step_is_an_error(tmp_path: Path) -> None:
    said, _ = play("another_step", 2, tmp_path)
    assert said == f"stage 1 got step {2**31 + 5}, not step 5"


def test_a_step_out_of_order_is_an_error(tmp_path: Path) -> None:
    said, _ = play("plan_out_of_order", 2, tmp_path)
    assert said == "stage 1 got step 1, not step 2"


def test_a_neighbour_that_dies_is_noticed(tmp_path: Path) -> None:
    said, dead = play("death", 2, tmp_path)
    assert said.startswith("stage 1 did not get step 1 from stage 0: ")
    assert dead == f"it ended with {-signal.SIGKILL}"


def test_a_neighbour_that_sends_nothing_is_given_up(tmp_path: Path) -> None:
    said, _ = play("silence", 2, tmp_path)
    assert said.startswith("stage 1 did not get step 1 from stage 0: ")


def test_a_single_stage_has_no_neighbour(tmp_path: Path) -> None:
    assert play("single_stage", 1, tmp_path) == ["well"]


@pytest.mark.parametrize(("num_stages", "num_slices"), [(1, 3), (2, 2), (3, 3)])
def test_with_virtual_stages_each_step_goes_round_and_no_stage_waits_for_itself(
    num_stages: int, num_slices: int, tmp_path: Path
) -> None:
    assert play("rounds", num_stages, tmp_path, num_slices) == ["well"] * num_stages


@pytest.mark.parametrize("num_stages", [2, 3])
def test_the_first_stage_notices_the_death_of_the_last(num_stages: int, tmp_path: Path) -> None:
    dead, *_, first = play("lost_on_the_way_back", num_stages, tmp_path, 2)
    assert dead == f"it ended with {-signal.SIGKILL}"
    assert first.startswith(f"stage 0 did not get step 1 from stage {num_stages - 1}: ")
