"""The runtime folder is shared by the processes of a daemon, and locked while they run.

A router may have one, too.

It holds sockets and secrets, so no other user may write into it: another user could replace the
engine's socket. A daemon that is killed leaves its folder, which the next start removes: the kernel
frees the lock of a process that has ended, however it ended.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from configs import loader
from configs.config import Config
from configs.schema.part import Part
from daemon.healthcheck import PORT_FILE
from daemon.start_error import StartError

PID_FILE = "pid"
# In temporary folders only, of which nothing may remain.
TEMPORARY_FILE = "temporary"
# What the processes of a daemon write into the folder: settings with their secrets, sockets,
# reports of failures and exits, watchdog files.
_OWN_FILES = (loader.RESOLVED, PID_FILE, PORT_FILE, "failure.txt", "exits.jsonl")
_OWN_PATTERNS = ("*.sock", "*.watchdog", "stage-*.json")


class FolderTakenError(StartError):
    """The folder cannot be this daemon's; the message is for the user."""


class FolderUnusableError(StartError):
    """The folder cannot be written to, as on a full disk; the message is for the user."""


@contextmanager
def runtime_folder(config: Config) -> Iterator[Config]:
    """Prepare and lock the folder, save the settings in it, and yield `config` with its path.

    What an earlier daemon has left there is removed. The folder also has the id of this process,
    for signals. By default, the folder is temporary. At the end, the settings are removed, or the
    whole temporary folder. Raises `FolderTakenError`, and `FolderUnusableError` if it cannot be
    written to or its path is too long for a socket in it.
    """
    if config.runtime.runtime_dir is None:
        with temporary_folder() as folder:
            placed = _placed(config, folder)
            _save(placed, folder)
            yield placed
        return
    folder = config.runtime.runtime_dir
    placed = _placed(config, folder)
    with occupied(folder, placed):
        yield placed


def _placed(config: Config, folder: Path) -> Config:
    placed = config.placed(folder)
    try:
        placed.runtime.check_folder()
    except ValueError as error:
        default = "" if config.runtime.runtime_dir else ", by default a new folder in TMPDIR"
        raise FolderUnusableError(f"runtime_dir{default}: {folder}: {error}") from error
    return placed


@contextmanager
def occupied(folder: Path, settings: Part) -> Iterator[None]:
    """Make, lock and clear the folder, and keep the settings in it until the end of the block.

    Raises `FolderTakenError`, and `FolderUnusableError` if it cannot be written to.
    """
    with _locked(folder):
        remove_leftovers(folder.parent)
        _clear(folder)
        _write_pid(folder)
        try:
            _save(settings, folder)
            yield
        finally:
            (folder / loader.RESOLVED).unlink(missing_ok=True)  # it has secrets


@contextmanager
def temporary_folder(prefix: str = "tdpipe-") -> Iterator[Path]:
    """A locked folder of this process for the length of the block. Raises `FolderTakenError`."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        raise FolderTakenError(f"cannot make a temporary folder: {error.strerror}") from error
    try:
        with _locked(folder):
            (folder / TEMPORARY_FILE).touch()
            _write_pid(folder)  # from here on, it is removed if this process is killed
            remove_leftovers(folder.parent)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Remove what daemons of this user have left in folders in `parent`, because they were killed.

    Of temporary folders nothing remains; of others, which somebody has named, only what a daemon
    writes is removed. A folder without a process id and settings is not touched: it is another
    program's, or is about to be locked. One that is locked is a live daemon's.
    """
    with suppress(OSError):
        for folder in list(parent.iterdir()):
            # It vanishes, is another user's, is locked, or never was a daemon's.
            with suppress(OSError, ValueError):
                _remove_leftover(folder)


def _remove_leftover(folder: Path) -> None:
    """Raises `OSError` and `ValueError` for a folder that is not a killed daemon's."""
    int((folder / PID_FILE).read_text())
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        return
    is_temporary = (folder / TEMPORARY_FILE).exists()
    if not is_temporary:
        loader.load_saved(folder)
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_temporary:
            shutil.rmtree(folder, ignore_errors=True)
            return
        _clear(folder)
        folder.rmdir()  # fails if it has other files
    finally:
        os.close(opened)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder, unless it is there, and lock it. Raises `FolderTakenError`."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _keep_others_out(folder)
        opened = os.open(folder, os.O_RDONLY)
    except OSError as error:
        reason = error.strerror
        raise FolderTakenError(f"runtime_dir: cannot use {folder}: {reason}") from error
    try:
        _lock(opened, folder)
        yield
    finally:
        os.close(opened)


def _save(settings: Part, folder: Path) -> None:
    with _explained(folder):
        loader.save(settings, folder)


def _write_pid(folder: Path) -> None:
    with _explained(folder):
        (folder / PID_FILE).write_text(f"{os.getpid()}\n")


def _clear(folder: Path) -> None:
    """Remove what an earlier daemon has left: its sockets and reports would be taken for ours."""
    left = [folder / name for name in _OWN_FILES]
    left += [path for pattern in _OWN_PATTERNS for path in folder.glob(pattern)]
    for path in left:
        path.unlink(missing_ok=True)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into a line for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise FolderUnusableError(f"cannot write to {folder} (runtime_dir): {reason}") from error


def _keep_others_out(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise FolderTakenError(
            f"{folder} (runtime_dir) is another user's; name a folder that does not exist yet"
        )
    if status.st_mode & 0o022:
        folder.chmod(status.st_mode & 0o755)


def _lock(opened: int, folder: Path) -> None:
    """Lock the folder itself, so that systemd-tmpfiles keeps it in /tmp (tmpfiles.d(5)).

    Otherwise, systemd-tmpfiles would remove the settings, which every restart reads, after ten
    days.
    """
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderTakenError(
            f"another daemon{_pid_of(folder)} runs in {folder} (runtime_dir); stop it, or use "
            "another runtime_dir"
        ) from error


def _pid_of(folder: Path) -> str:
    with suppress(OSError):
        return f" (pid {(folder / PID_FILE).read_text().strip()})"
    return ""
