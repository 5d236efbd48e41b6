"""The runtime folder: it has one daemon, and no other user can write into it."""

import fcntl
import os
import stat
from pathlib import Path

import pytest

from configs.config import Config
from daemon.runtime_folder import PID_FILE, FolderTakenError, runtime_folder


def rights(path: Path) -> int:
    """Its permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_a_temporary_folder_is_private_and_removed_at_the_end() -> None:
    with runtime_folder(Config()) as config:
        assert rights(config.runtime.folder) == 0o700
        assert rights(config.runtime.folder / "config.json") == 0o600
        assert int((config.runtime.folder / PID_FILE).read_text()) == os.getpid()
    assert not config.runtime.folder.exists()


@pytest.mark.parametrize(("before", "after"), [(0o777, 0o755), (0o775, 0o755), (0o750, 0o750)])
def test_others_cannot_write_into_a_folder_that_was_there(
    before: int, after: int, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(before)
    with runtime_folder(Config.of(runtime_dir=folder)):
        assert rights(folder) == after
    assert folder.exists()


def test_another_user_s_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with (
        pytest.raises(FolderTakenError, match="another user"),
        runtime_folder(Config.of(runtime_dir=tmp_path)),
    ):
        pass


def test_a_folder_that_runs_is_not_cleaned_away(tmp_path: Path) -> None:
    """`systemd-tmpfiles --clean` asks for a shared lock of each folder before it looks into it."""

    def may_clean(folder: Path) -> bool:
        opened = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(opened)
        return True

    with runtime_folder(Config.of(runtime_dir=tmp_path)):
        assert not may_clean(tmp_path)
    assert may_clean(tmp_path)


def test_a_second_set_of_processes_is_refused_and_leaves_the_first_one_s_files(
    tmp_path: Path,
) -> None:
    with runtime_folder(Config.of(runtime_dir=tmp_path)):
        with (
            pytest.raises(FolderTakenError, match="another daemon runs in"),
            runtime_folder(Config.of(runtime_dir=tmp_path)),
        ):
            pass
        assert int((tmp_path / PID_FILE).read_text()) == os.getpid()
