"""Output files: a file of another command is not replaced unasked."""

from pathlib import Path

import pytest

from configs.output_files import OutputFileError, check_outputs, has_mark, picture_metadata

MARK = "tdpipe this"


def test_a_new_file_may_be_written_and_is_not_left_behind(tmp_path: Path) -> None:
    check_outputs({tmp_path / "new.csv": MARK, tmp_path / "new.png": MARK})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"tdpipe this", b"x" * 40_000 + b"tdpipe this"])
def test_a_file_of_the_same_command_may_be_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    check_outputs({tmp_path / "file": MARK})
    assert (tmp_path / "file").read_bytes() == content


@pytest.mark.parametrize("content", [b"\x00\xff", b"tdpipe that", b"\n"])
def test_another_file_is_refused_unless_overwritten(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(OutputFileError, match=r"file exists .*--overwrite"):
        check_outputs({path: MARK})
    check_outputs({path: MARK}, overwrite=True)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        check_outputs({tmp_path / "nowhere" / "file": MARK})
    with pytest.raises(OSError, match="directory"):
        check_outputs({tmp_path: MARK}, overwrite=True)


def test_a_device_is_no_file_to_keep() -> None:
    check_outputs({Path("/dev/null"): MARK, Path("/dev/full"): MARK})


def test_one_path_cannot_be_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputFileError, match="same path"):
        check_outputs({Path("file"): MARK, tmp_path / "file": MARK})


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture_has_its_mark(tmp_path: Path, suffix: str) -> None:
    from matplotlib.figure import Figure

    path = tmp_path / f"picture{suffix}"
    Figure().savefig(path, metadata=picture_metadata(path, MARK))
    assert has_mark(path, MARK)
    assert not has_mark(path, "tdpipe that")
