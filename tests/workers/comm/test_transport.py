"""The transport between real processes: the right step arrives, and nothing else ever does."""

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PATIENCE_S = 60.0


def play(name: str, num_stages: int, folder: Path) -> list[str]:
    """Run a play of `neighbours.py` on all stages; what each prints, the last stage first."""
    with ExitStack() as stack:
        stages = []
        for stage in range(num_stages):
            command = [sys.executable, "-m", "tests.workers.neighbours"]
            command += [str(stage), str(num_stages), f"{folder}/store", name]
            process = stack.enter_context(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(process.kill)
            stages.append(process)
        said = []
        for process in reversed(stages):
            out, err = process.communicate("go\n", timeout=PATIENCE_S)
            said.append(out.strip() or f"rc {process.returncode} {err[-2000:]}")
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
    assert dead.startswith("rc -9")


def test_a_neighbour_that_sends_nothing_is_given_up(tmp_path: Path) -> None:
    said, _ = play("silence", 2, tmp_path)
    assert said.startswith("stage 1 did not get step 1 from stage 0: ")


def test_a_single_stage_has_no_neighbours(tmp_path: Path) -> None:
    assert play("single_stage", 1, tmp_path) == ["well"]
