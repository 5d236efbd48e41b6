"""The schema: frozen, closed, and addresses and names that follow from other settings."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from configs.schema import (
    BatchConfig,
    CacheConfig,
    ChatConfig,
    Config,
    EngineConfig,
    ModelConfig,
    Part,
    PipelineConfig,
    PredictorConfig,
    RuntimeConfig,
    SchedulerConfig,
    ServerConfig,
)

PARTS = [
    ModelConfig,
    PipelineConfig,
    CacheConfig,
    SchedulerConfig,
    PredictorConfig,
    ServerConfig,
    BatchConfig,
    ChatConfig,
    RuntimeConfig,
]


@pytest.mark.parametrize("part", [*PARTS, EngineConfig, Config])
def test_a_setting_cannot_be_changed_later(part: type[Part]) -> None:
    config = part()
    for key, value in config:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, key, value)


@pytest.mark.parametrize("part", [*PARTS, EngineConfig, Config])
def test_a_part_takes_no_key_that_it_does_not_know(part: type[Part]) -> None:
    with pytest.raises(ValidationError, match="colour"):
        part.model_validate({"colour": "red"})


def test_the_whole_is_its_parts_and_each_key_is_in_one_of_them() -> None:
    keys = [key for part in PARTS for key, _ in part()]
    assert sorted(keys) == sorted(Config.model_fields)
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pipeline_parallel_size": 4}, 2048),
        ({"max_num_seqs": 5}, 10),
        ({"batch_concurrency": 7}, 7),
    ],
)
def test_batches_keep_as_much_open_again_as_runs(settings: dict[str, int], expected: int) -> None:
    assert Config.model_validate(settings).max_open_batch_requests == expected


def test_every_setting_is_described() -> None:
    assert [key for key, field in Config.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("split", [(), (4,), (4, 4, 4), (8, 0), (9, -1)])
def test_a_layer_split_names_a_layer_for_each_stage(split: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="2 stages"):
        PipelineConfig(pipeline_parallel_size=2, layer_split=split)


@pytest.mark.parametrize("endpoint", ["", "ipc:/x", "http://x", "127.0.0.1:80", " tcp://x:1"])
def test_an_endpoint_is_ipc_or_tcp(endpoint: str) -> None:
    for key in ("server_endpoint", "stage_endpoint"):
        with pytest.raises(ValidationError, match=r"ipc:// or tcp://"):
            Config.model_validate({key: endpoint})


def test_without_endpoints_the_sockets_lie_in_the_runtime_folder() -> None:
    config = Config(runtime_dir=Path("/run/x"))
    assert config.server_address == "ipc:///run/x/server.sock"
    assert config.stage_address == "ipc:///run/x/stages.sock"


def test_endpoints_are_taken_as_they_are() -> None:
    config = Config(server_endpoint="tcp://127.0.0.1:1", stage_endpoint="ipc://y")
    assert (config.server_address, config.stage_address) == ("tcp://127.0.0.1:1", "ipc://y")


def test_the_folder_is_not_asked_for_before_it_is_chosen() -> None:
    with pytest.raises(AssertionError, match="runtime_dir"):
        _ = Config().server_address


def test_the_model_is_named_after_its_folder_or_its_hub_id(tmp_path: Path) -> None:
    (tmp_path / "my-model").mkdir()
    assert Config(model=f"{tmp_path}/my-model").name == "my-model"
    assert Config(model=f"{tmp_path}/my-model/").name == "my-model"
    assert Config(model="company/their-model").name == "company/their-model"
    assert Config(model="company/their-model", served_model_name="ours").name == "ours"
    assert Config().name == "tdpipe-demo"


def test_a_folder_given_as_a_dot_has_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Config(model=".").name == tmp_path.name


@pytest.mark.parametrize("predictor", ["constant:", "constant:0", "constant:-1", "constant:1.5"])
def test_a_constant_prediction_is_a_number_of_tokens(predictor: str) -> None:
    with pytest.raises(ValidationError, match="constant:N"):
        PredictorConfig(predictor=predictor)


def test_a_predictor_is_embedded_or_a_folder() -> None:
    assert PredictorConfig(predictor="some/folder").predictor_folder == Path("some/folder")
    assert PredictorConfig(predictor="constant:64").constant_len == 64
    for predictor in ("histogram", "oracle", "constant:64"):
        assert PredictorConfig(predictor=predictor).predictor_folder is None


def test_no_error_shows_what_was_given() -> None:
    with pytest.raises(ValidationError) as caught:
        Config.model_validate({"api_key": "hunter2", "port": "hunter2"})
    assert "hunter2" not in str(caught.value)
