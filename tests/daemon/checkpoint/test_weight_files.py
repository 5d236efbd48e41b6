"""The files of weights: what is missing or cut short is named without loading anything."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from daemon.checkpoint.weight_files import check_weights
from daemon.start_error import StartError


def write_weights(folder: Path, name: str = "model.safetensors") -> Path:
    """A file of two tensors, as safetensors itself writes it."""
    save_file({"a": torch.arange(6), "b": torch.ones(3)}, folder / name, {"format": "pt"})
    return folder / name


def write_index(folder: Path, *names: str) -> None:
    """The index of a checkpoint in several files."""
    index = {"weight_map": {f"tensor{n}": name for n, name in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def refusal(folder: Path, load_format: str = "safetensors") -> str:
    """The line about a folder that cannot be loaded."""
    with pytest.raises(StartError) as found:
        check_weights(folder, load_format)  # type: ignore[arg-type]
    assert "\n" not in str(found.value)
    return str(found.value)


def test_whole_files_are_accepted(tmp_path: Path) -> None:
    write_weights(tmp_path)
    check_weights(tmp_path, "safetensors")
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00001.safetensors")
    write_index(tmp_path, "model-00001-of-00001.safetensors")
    check_weights(tmp_path, "safetensors")


def test_a_file_without_tensors_is_accepted(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    check_weights(tmp_path, "safetensors")


@pytest.mark.parametrize("num_bytes", [0, 5, 8, 40, -1])
def test_a_file_that_was_cut_short_is_named(num_bytes: int, tmp_path: Path) -> None:
    file = write_weights(tmp_path)
    file.write_bytes(file.read_bytes()[:num_bytes])
    assert refusal(tmp_path).startswith(f"{file} is truncated or damaged: ")


def test_the_bytes_that_are_missing_are_told(tmp_path: Path) -> None:
    file = write_weights(tmp_path)
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-10])
    assert f"it has {size - 10:,} bytes instead of {size:,}" in refusal(tmp_path)


@pytest.mark.parametrize(
    "header", [b"not JSON", b"[]", b'{"a": {}}', b'{"a": {"data_offsets": [0]}}', b'{"a": 1}']
)
def test_a_damaged_header_is_named(header: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert "its header cannot be read" in refusal(tmp_path)


def test_the_files_that_the_index_names_and_the_folder_lacks_are_counted(tmp_path: Path) -> None:
    names = [f"model-0000{n}-of-00004.safetensors" for n in (1, 2, 3, 4)]
    write_weights(tmp_path, names[1])
    write_index(tmp_path, *names)
    assert f"{tmp_path} lacks {names[0]} and 2 more of the 4 files" in refusal(tmp_path)
    for name in (names[0], names[2]):
        write_weights(tmp_path, name)
    assert f"lacks {names[3]} of the 4 files" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": 3}', "{}"])
def test_an_index_that_cannot_be_read_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    assert "model.safetensors.index.json is truncated or damaged" in refusal(tmp_path)


def test_a_pointer_of_git_lfs_is_told_with_the_command_that_gets_the_file(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
    (tmp_path / "model.safetensors").write_text(pointer)
    assert "git lfs pull" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text(pointer)
    assert "git lfs pull" in refusal(tmp_path, "pt")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    assert "has no weights: there is no *.safetensors" in refusal(tmp_path)
    assert "has no weights: there is no *.bin (load_format pt)" in refusal(tmp_path, "pt")


def test_pickled_weights_are_refused_unless_asked_for(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
    assert "only in pytorch_model.bin" in refusal(tmp_path)
    assert "--load-format pt" in refusal(tmp_path)
    check_weights(tmp_path, "pt")
