"""`make serve` and `make chat`: the demo's predictor and model are for the demo only."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from daemon import supervisor
from demo.serve import PREDICTOR, main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The arguments with which the daemon was started."""
    all_arguments: list[list[str]] = []

    def run(argv: Sequence[str]) -> int:
        all_arguments.append([*argv])
        return 0

    monkeypatch.setattr(supervisor, "main", run)
    return all_arguments


@pytest.mark.parametrize("arguments", [[], ["--port", "8401"], ["-pp", "3", "--no-access-log"]])
def test_the_demo_has_its_predictor(arguments: list[str], served: list[list[str]]) -> None:
    assert main(arguments) == 0
    assert served == [[*arguments, "--predictor", str(PREDICTOR)]]
    assert PREDICTOR.is_dir()


@pytest.mark.parametrize(
    "arguments",
    [
        ["/models/X", "--port", "8401"],
        ["--port", "8401", "/models/X"],
        ["--no-access-log", "/models/X"],
        ["--predictor", "histogram"],
        ["--predictor=constant:9", "--port", "8401"],
        ["--no-such-flag"],
    ],
)
def test_another_model_or_predictor_is_served_as_it_is_in_any_order(
    arguments: list[str], served: list[list[str]]
) -> None:
    assert main(arguments) == 0
    assert served == [arguments]


def test_a_model_in_the_environment_or_the_yaml_file_counts(
    served: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tdpipe.yaml").write_text("model: /models/X\n")
    arguments = ["--config", str(tmp_path / "tdpipe.yaml")]
    assert main(arguments) == 0
    monkeypatch.setenv("TDPIPE_MODEL", "/models/X")
    assert main([]) == 0
    assert served == [arguments, []]


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 1), (["-pp", "2"], 1), (["-pp", "2", "X"], 0), (["X"], 0)]
)
def test_make_chat_fetches_smollm2_only_without_a_model(arguments: list[str], code: int) -> None:
    command = [sys.executable, "-m", "demo.names_model", *arguments]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == code
