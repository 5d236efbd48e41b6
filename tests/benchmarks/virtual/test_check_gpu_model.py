"""The GPU model is as close to the measurements as its documentation says."""

from pathlib import Path

import pytest

from benchmarks.virtual.check_gpu_model import (
    MEASURED,
    PROFILES,
    check_layers,
    check_profiles,
    main,
)
from configs.profiles import write_profile
from simulator.hardware.gpu_model import profile_of
from simulator.hardware.gpus import find_gpu
from simulator.hardware.model_shape import read_shape

# The allowed error: median, p95.
LIMITS = {"llama2-13b": (0.03, 0.06), "qwen2.5-32b": (0.04, 0.12), "opt-125m": (0.06, 0.20)}


@pytest.mark.skipif(not PROFILES.is_dir(), reason="TD-Pipe's profiles are not here")
def test_the_measured_profiles_are_met() -> None:
    checked = dict(check_profiles(PROFILES))
    assert len(checked) == len(MEASURED)
    for name, errors in checked.items():
        median, p95 = LIMITS[name.split()[0]]
        assert errors.median < median
        assert errors.p95 < p95


def test_other_gpus_layers_are_met() -> None:
    for _, errors in check_layers():
        assert errors.median < 0.06
        assert abs(errors.worst[1]) < 0.25


def test_a_profile_that_the_model_wrote_has_no_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = profile_of(find_gpu("L20"), read_shape("llama2-13b"), max_tokens=64)
    write_profile(profile, tmp_path / "L20-Llama-13B.csv")
    assert main([str(tmp_path)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "llama2-13b" in line)
    assert line.startswith("| llama2-13b on L20, whole forward | 0.0% | 0.0% |")


def test_a_folder_without_profiles_still_gets_the_other_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert "none of the profiles" in printed.err
    assert "A100-80G-SXM" in printed.out


def test_a_broken_profile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "L20-opt-125m.csv").write_text("no profile")
    assert main([str(tmp_path)]) == 1
    assert "L20-opt-125m.csv" in capsys.readouterr().err
