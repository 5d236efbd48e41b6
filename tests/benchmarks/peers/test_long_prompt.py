"""The benchmark of one long prompt, with a model that is made in a moment."""

from pathlib import Path

import pytest

from benchmarks.peers import long_prompt
from benchmarks.peers.long_prompt import main, table
from benchmarks.peers.workload import MODELS, make_model
from tests.benchmarks.peers.test_peers import tiny
from tests.kernels import prepare_data_dir


def test_the_ratio_is_to_the_fastest_of_transformers() -> None:
    seconds = {"transformers, bfloat16": [8.0, 10.0], "transformers, float32": [6.0]}
    lines = table(seconds | {"tdpipe, 2 stages": [3.0, 5.0, 3.0]})
    assert lines[2:] == [
        "| transformers, bfloat16 | 9.0 | 8.0, 10.0 | 1.50 |",
        "| transformers, float32 | 6.0 | 6.0 | 1.00 |",
        "| tdpipe, 2 stages | 3.0 | 3.0, 5.0, 3.0 | 0.50 |",
    ]


@pytest.mark.long
def test_transformers_and_tdpipe_prefill_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MODELS, "llama-120m", tiny())
    model = make_model(tmp_path, "llama-120m")
    prepare_data_dir(tmp_path / "data")
    first, *_, last = long_prompt.candidates(tmp_path / "data")
    monkeypatch.setattr(long_prompt, "candidates", lambda _: [first, last])
    assert main([str(model), "--tokens=300", "--rounds=1", f"--folder={tmp_path}"]) == 0
    out = capsys.readouterr().out
    assert "| transformers, bfloat16" in out
    assert "| tdpipe, 2 stages" in out
