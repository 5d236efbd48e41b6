"""`tdpipe profile`: a real pipeline of two stages is measured, and errors are reported."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from configs.config import Config
from configs.profiles import ProfileError, read_profile, read_steps
from tests.checkpoints import make_checkpoint
from tests.kernels import prepare_data_dir
from workers.profiling import command
from workers.profiling.command import main, steps_path
from workers.profiling.driver import Driver, DriverError
from workers.profiling.dummy_run import decode, prefill

ROOT = Path(__file__).resolve().parents[3]
TINY = ["--device=cpu", "-pp=2", "--num-threads=1", "--repeats=1"]
TINY += ["--max-tokens=4", "--max-rows=2", "--max-model-len=64", "--log-level=error"]


def test_a_pipeline_is_measured_into_three_files_and_resumed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo.csv"
    assert main([*TINY, f"--out={out}"]) == 0
    table = read_steps(steps_path(out))
    assert len(table.stages) == 2
    assert {step.kind for step in table.stages[0]} == {"prefill", "decode"}
    assert table.notes["layers"] == "0-3,3-6"
    assert table.notes["p2p_latency_us"].isdecimal()
    assert read_profile(out).num_tokens == (1, 2, 4)
    assert out.with_suffix(".png").stat().st_size > 1000
    # The second run has only the larger steps to measure.
    assert main([*TINY, f"--out={out}", "--max-tokens=8"]) == 0
    longer = read_steps(steps_path(out))
    assert longer.stages[1][: len(table.stages[1])] == table.stages[1]
    assert read_profile(out).num_tokens == (1, 2, 4, 8)
    assert " steps are in " in capfd.readouterr().out
    with pytest.raises(ProfileError, match=r"another layers \(0-3,3-6, not 0-2,2-6\); --no-resume"):
        command._check_same(longer, longer.notes | {"layers": "0-2,2-6"}, out)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out=x.txt"], "must end in .csv"),
        (["--out=/nowhere/at/all/x.csv"], "No such file"),
        (["--out={}/x.csv", "--polcy=temporal"], "unknown flag --polcy"),
        (["--out={}/x.csv", "--pipeline-parallel-size=0"], "pipeline_parallel_size"),
        (["--out={}/bad.csv"], "is an empty profile"),
        (["--out={}/x.csv", "--virtual-pipeline-size=2"], "virtual_pipeline_size must be 1"),
        (["--out={}/x.csv", "-tp", "2"], "tensor_parallel_size must be 1"),
        (["--out={}/x.csv", "--nnodes=2", f"--cluster-secret={'x' * 16}"], "nnodes must be 1"),
    ],
)
def test_an_error_is_reported_in_one_line_before_anything_starts(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.steps.csv").write_text("\n")
    assert main([word.format(tmp_path) for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("tdpipe: error: ")
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["bad.steps.csv"]


@pytest.mark.parametrize("name", ["x.csv", "x.png"])
def test_a_file_of_another_command_is_kept(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text("Total Length,Execute Time\n1,2\n")
    assert main([*TINY, f"--out={tmp_path / 'x.csv'}"]) == 2
    assert f"{name} exists and another command wrote it" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "Total Length,Execute Time\n1,2\n"


def test_the_reason_why_a_stage_cannot_start_is_reported(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint(tmp_path / "model", "bloom")
    assert main([str(model), *TINY, f"--out={tmp_path / 'x.csv'}"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("tdpipe: error: stage ")
    assert "bloom models cannot be served" in error


def test_a_stage_that_dies_ends_the_measurement(tmp_path: Path) -> None:
    config = Config.of(
        device="cpu", num_threads=1, profile_seconds=0, data_dir=prepare_data_dir(tmp_path)
    )
    with Driver(config) as driver:
        timed = list(driver.run([prefill([3]), decode(2, 5)], 2))
        assert [t.dummy_run.kind for t in timed] == ["prefill", "decode"]
        assert all(t.seconds(stage) > 0 for t in timed for stage in (0, 1))
        assert all(t.began_at[1] >= t.ended_at[0] for t in timed)
        # Other tests' daemons may be among this process's children too.
        assert driver.pid is not None
        stages = psutil.Process(driver.pid).children()
        assert len(stages) == 2
        stages[0].kill()
        with pytest.raises(DriverError):
            list(driver.run([decode(1, 5)] * 100_000, 2))
    # The kernel ends the stages that torchrun left behind: its signal arrives a moment later.
    _, alive = psutil.wait_procs(stages, timeout=30)
    assert not alive


@pytest.mark.long
def test_no_process_is_left_after_a_command_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tdpipe.py"), "profile", "--device=cpu"]
    process = subprocess.Popen([*command, f"--out={tmp_path / 'x.csv'}"], cwd=ROOT)
    try:
        stages: list[psutil.Process] = []
        while len(stages) < 2 and process.poll() is None:
            stages = _stages_of(process.pid)
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    gone, alive = psutil.wait_procs(stages, timeout=30)
    assert len(gone) >= 2
    assert not alive


def test_the_picture_marks_the_knee() -> None:
    stairs = {1: 1.0, 64: 1.0, 128: 1.05, 129: 2.0, 256: 2.05}
    assert command.staircase([prefill([8]).measured(1.0, 1)]) == {8: 1.0}
    from workers.profiling.plot import knee

    assert knee(stairs) == 128


def _stages_of(pid: int) -> list[psutil.Process]:
    """The processes below torchrun."""
    return [
        child
        for child in psutil.Process(pid).children(recursive=True)
        if child.ppid() != pid and child.status() != psutil.STATUS_ZOMBIE
    ]
