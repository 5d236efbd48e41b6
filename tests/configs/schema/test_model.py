"""Settings of the model: its names in the API."""

from pathlib import Path

import pytest

from configs.schema.model import ModelConfig


def test_the_model_is_named_after_its_folder_or_its_hub_id(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert ModelConfig(model=f"{tmp_path}/my-model").name == "my-model"
    assert ModelConfig(model=f"{tmp_path}/my-model/").name == "my-model"
    assert ModelConfig(model="owner/their-model").name == "owner/their-model"
    assert ModelConfig(model="owner/their-model", served_model_name=("ours",)).name == "ours"
    assert ModelConfig(model="files/a-model.Q4_K_M.gguf").name == "a-model.Q4_K_M"
    assert ModelConfig().name == "tdpipe-demo"


def test_a_folder_given_as_a_dot_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelConfig(model=".").name == tmp_path.name
