"""The runtime folder is shared by the processes of a daemon, and locked while they run.

A router may have one, too.

It holds sockets and secrets, so no other user may write into it: another user could replace the
engine's socket.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs import loader
from configs.config import Config
from configs.part import Part
from daemon import child_process, process_exits
from daemon.healthcheck import PORT_FILE

PID_FILE = "pid"


class FolderTakenError(Exception):
    """The folder belongs to another user or daemon; the message is for the user."""


@contextmanager
def runtime_folder(config: Config) -> Iterator[Config]:
    """Prepare and lock the folder, save the settings in it, and yield `config` with its path.

    By default, the folder is temporary. Raises `FolderTakenError`.
    """
    folder = config.runtime.runtime_dir or Path(tempfile.mkdtemp(prefix="tdpipe-"))
    placed = config.replaced(runtime_dir=folder)
    try:
        with occupied(folder, placed):
            yield placed
    finally:
        if config.runtime.runtime_dir is None:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def occupied(folder: Path, config: Part) -> Iterator[None]:
    """Prepare and lock the folder; it holds the settings, and the id of this process for signals.

    What an earlier daemon has reported is removed. Raises `FolderTakenError`.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _keep_others_out(folder)
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened, folder)
        for left in (child_process.FAILURE, process_exits.FILE, PORT_FILE):
            (folder / left).unlink(missing_ok=True)
        loader.save(config, folder)
        (folder / PID_FILE).write_text(f"{os.getpid()}\n")
        yield
    finally:
        os.close(opened)


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
            f"another daemon runs in {folder} (runtime_dir); stop it, or use another runtime_dir"
        ) from error
