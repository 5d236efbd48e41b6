"""The types of models: those that transformers knows are, and no others."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from daemon.checkpoint import model_types
from daemon.checkpoint.model_types import check_type, is_known
from daemon.start_error import StartError


def test_every_type_of_transformers_is_known() -> None:
    assert [kind for kind in CONFIG_MAPPING if not is_known(kind)] == []


def test_other_types_are_not_known() -> None:
    assert not is_known("my_model")
    assert not is_known("LlamaConfig2")


def test_a_type_without_code_is_named_with_the_version_of_transformers() -> None:
    with pytest.raises(
        StartError, match=r"model m: transformers \d.* no models of the type my_mod"
    ):
        check_type("m", {"model_type": "my_model"}, trusts_code=False)


def test_the_code_of_a_checkpoint_runs_only_if_it_is_trusted() -> None:
    config = {"model_type": "my_model", "auto_map": {"AutoConfig": "code.MyConfig"}}
    check_type("m", config, trusts_code=True)
    with pytest.raises(StartError, match="--trust-remote-code"):
        check_type("m", config, trusts_code=False)
    check_type("m", config | {"model_type": "llama"}, trusts_code=False)


@pytest.mark.parametrize("config", [{}, {"model_type": None}])
def test_a_config_without_a_type_is_left_to_the_stages(config: dict[str, object]) -> None:
    check_type("m", config, trusts_code=False)


@pytest.mark.parametrize("spec", [None, SimpleNamespace(submodule_search_locations=["/nowhere"])])
def test_without_the_source_of_transformers_every_type_is_left_to_the_stages(
    spec: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_types, "find_spec", lambda _: spec)
    assert is_known("my_model")
    assert not Path("/nowhere").exists()
