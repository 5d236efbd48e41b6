"""The runtime folder: it has one daemon, and no other user can write into it."""

import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.config import Config
from configs.uds import MAX_UDS_BYTES
from daemon.runtime_folder import (
    PID_FILE,
    FolderTakenError,
    FolderUnusableError,
    remove_leftovers,
    runtime_folder,
    temporary_folder,
)
from tests.end_to_end.daemon import ROOT

# A daemon of these settings, as far as its folder goes.
DAEMON = """
import json, sys, time
from configs.config import Config
from daemon.runtime_folder import runtime_folder
with runtime_folder(Config.of(**json.loads(sys.argv[1]))) as config:
    (config.runtime.folder / "stages.sock").touch()
    (config.runtime.folder / "c10d").mkdir()
    print(config.runtime.folder, flush=True)
    time.sleep(600)
"""

Start = Callable[[str], tuple["subprocess.Popen[str]", Path]]


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary ones, with a path that leaves room for those of sockets."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)


@pytest.fixture
def start(temporary: Path) -> Iterator[Start]:
    """Starts a process with a runtime folder, by its settings in JSON; all end with the test."""
    processes: list[subprocess.Popen[str]] = []

    def run(settings: str = "{}") -> tuple["subprocess.Popen[str]", Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, settings],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(temporary)},
        )
        processes.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield run
    for process in processes:
        with process:
            process.kill()


def kill(process: "subprocess.Popen[str]") -> None:
    """SIGKILL, and wait."""
    process.send_signal(signal.SIGKILL)
    process.wait(30)


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
            pytest.raises(FolderTakenError, match=rf"another daemon \(pid {os.getpid()}\) runs in"),
            runtime_folder(Config.of(runtime_dir=tmp_path)),
        ):
            pass
        assert int((tmp_path / PID_FILE).read_text()) == os.getpid()
        assert (tmp_path / "config.json").exists()


def test_the_settings_of_a_named_folder_are_removed_at_the_end(tmp_path: Path) -> None:
    with runtime_folder(Config.of(runtime_dir=tmp_path / "run")) as config:
        assert (config.runtime.folder / "config.json").exists()
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(FolderTakenError, match=r"runtime_dir: cannot use .*/file/run: Not a dir"),
        runtime_folder(Config.of(runtime_dir=tmp_path / "file" / "run")),
    ):
        pass


def test_the_next_start_removes_the_temporary_folder_of_a_killed_process(
    start: Start, temporary: Path
) -> None:
    killed, left = start("{}")
    live, kept = start("{}")
    assert {left, kept} == set(temporary.iterdir())
    kill(killed)
    assert (left / "config.json").exists()
    with runtime_folder(Config()) as config:
        assert set(temporary.iterdir()) == {kept, config.runtime.folder}
    assert live.poll() is None


def test_a_killed_process_s_files_in_a_named_folder_are_removed_and_no_others(
    start: Start, tmp_path: Path
) -> None:
    for name in ("killed", "with-notes", "live"):
        (tmp_path / name).mkdir()
    killed = [start(f'{{"runtime_dir": "{tmp_path / name}"}}') for name in ("killed", "with-notes")]
    start(f'{{"runtime_dir": "{tmp_path / "live"}"}}')
    (tmp_path / "killed" / "c10d").rmdir()
    (tmp_path / "with-notes" / "notes.txt").touch()
    for process, _ in killed:
        kill(process)
    with runtime_folder(Config.of(runtime_dir=tmp_path / "run")):
        assert not (tmp_path / "killed").exists()
        left = {path.name for path in (tmp_path / "with-notes").iterdir()}
        assert left == {"c10d", "notes.txt"}
        assert (tmp_path / "live" / "stages.sock").exists()


def test_a_folder_of_a_killed_process_can_be_used_again(start: Start, tmp_path: Path) -> None:
    killed, folder = start(f'{{"runtime_dir": "{tmp_path / "run"}"}}')
    (folder / "failure.txt").write_text("the engine failed")
    kill(killed)
    with runtime_folder(Config.of(runtime_dir=folder)):
        assert {path.name for path in folder.iterdir()} == {"pid", "config.json", "c10d"}


def test_folders_of_other_programs_are_not_touched(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    other = tmp_path / "tdpipe-other"
    other.mkdir()
    (other / PID_FILE).write_text("1\n")
    unlocked = tmp_path / "tdpipe-begins"  # a daemon has just made it
    unlocked.mkdir()
    (model / PID_FILE).write_text("1\n")
    before = sorted(tmp_path.rglob("*"))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_link_to_a_folder_is_not_followed(start: Start, temporary: Path, tmp_path: Path) -> None:
    killed, folder = start("{}")
    kill(killed)
    elsewhere = folder.rename(tmp_path / "elsewhere")
    (temporary / "tdpipe-link").symlink_to(elsewhere)
    remove_leftovers(temporary)
    assert (elsewhere / "config.json").exists()


@pytest.mark.usefixtures("temporary")
def test_temporary_folders_of_one_process_do_not_remove_each_other() -> None:
    with temporary_folder() as first, temporary_folder() as second:
        assert first.exists()
        assert second.exists()
    assert not first.exists()


@pytest.mark.parametrize("is_named", [True, False])
def test_a_folder_whose_sockets_would_have_too_long_a_path_is_refused_and_named(
    is_named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * MAX_UDS_BYTES)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    settings = {"runtime_dir": long / "run"} if is_named else {}
    with (
        pytest.raises(FolderUnusableError, match="at most 107 bytes") as caught,
        runtime_folder(Config.of(**settings)),
    ):
        pass
    assert str(caught.value).startswith("runtime_dir")
    assert str(long) in str(caught.value)
    assert ("TMPDIR" in str(caught.value)) is not is_named
    assert not list(long.iterdir())


def test_the_longest_path_has_sockets(tmp_path: Path) -> None:
    room = MAX_UDS_BYTES - len(os.fsencode(tmp_path)) - len("//predictor.sock")
    folder = tmp_path / ("x" * room)
    with runtime_folder(Config.of(runtime_dir=folder)) as config:
        path = config.runtime.predictor_address.removeprefix("ipc://")
        assert len(path) == MAX_UDS_BYTES
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path)
