"""The header of a GGUF file, against the package gguf and against damaged files."""

import random
from contextlib import suppress
from pathlib import Path

import pytest

from daemon.checkpoint.gguf_header import MAGIC, GgufError, is_gguf, read_header
from tests.gguf_files import write_gguf


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_the_header_is_that_of_the_package_gguf(file: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader, header = gguf.GGUFReader(file), read_header(file)
    assert {
        name: (tensor.type, tensor.num_values, tensor.offset)
        for name, tensor in header.tensors.items()
    } == {t.name: (t.tensor_type, t.n_elements, t.data_offset) for t in reader.tensors}
    for key, value in header.settings.items():
        assert reader.fields[key].contents() == value
    left = {key for key in reader.fields if not key.startswith("GGUF.")} - set(header.settings)
    assert left == {f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges")}


def test_a_file_is_known_by_its_first_bytes(file: Path, tmp_path: Path) -> None:
    assert is_gguf(file)
    for content in (b"", b"GG", b"\x08\0\0\0\0\0\0\0{}"):
        (tmp_path / "other").write_bytes(content)
        assert not is_gguf(tmp_path / "other")
        with pytest.raises(GgufError, match="is not a GGUF file"):
            read_header(tmp_path / "other")


def test_a_truncated_file_is_named(file: Path, tmp_path: Path) -> None:
    content, cut = file.read_bytes(), tmp_path / "cut.gguf"
    last = max(tensor.offset for tensor in read_header(file).tensors.values())
    draw = random.Random(1)
    for num_bytes in [5, 23, 24, *(draw.randrange(30, last) for _ in range(60)), last]:
        cut.write_bytes(content[:num_bytes])
        with pytest.raises(GgufError, match=r"cut\.gguf is truncated"):
            read_header(cut)
    cut.write_bytes(content[: last + 1])
    read_header(cut)  # the size of the last tensor is for those who know its type


def test_a_damaged_header_is_an_error_in_one_line(file: Path, tmp_path: Path) -> None:
    content, damaged = file.read_bytes(), tmp_path / "damaged.gguf"
    draw = random.Random(2)
    for _ in range(300):
        bytes_ = bytearray(content)
        for _ in range(draw.randrange(1, 4)):
            bytes_[draw.randrange(len(MAGIC), 1500)] = draw.randrange(256)
        damaged.write_bytes(bytes_)
        with suppress(GgufError):
            read_header(damaged)
    for wrong in (b"", b"\0" * 100, b"\xff" * 100):
        damaged.write_bytes(MAGIC + wrong)
        with pytest.raises(GgufError, match=r"truncated or damaged|version"):
            read_header(damaged)
