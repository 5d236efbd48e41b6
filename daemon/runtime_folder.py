"""The runtime folder: where one set of processes meets, locked for as long as they run.

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
from daemon import child_process

PID_FILE = "pid"


class FolderTakenError(Exception):
    """The folder is another user's, or another daemon runs in it; the text is for the user."""


@contextmanager
def runtime_folder(config: Config) -> Iterator[Config]:
    """`config` with a folder that is locked, holds these settings, and has no reported failure yet.

    It also holds the id of this process, for signals. Without a setting, the folder is a temporary
    one. Raises `FolderTakenError`.
    """
    folder = config.runtime.runtime_dir or Path(tempfile.mkdtemp(prefix="tdpipe-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _keep_others_out(folder)
    opened = os.open(folder, os.O_RDONLY)
    try:
        _lock(opened, folder)
        placed = config.replaced(runtime_dir=folder)
        (folder / child_process.FAILURE).unlink(missing_ok=True)
        loader.save(placed, folder)
        (folder / PID_FILE).write_text(f"{os.getpid()}\n")
        yield placed
    finally:
        os.close(opened)
        if config.runtime.runtime_dir is None:
            shutil.rmtree(folder, ignore_errors=True)


def _keep_others_out(folder: Path) -> None:
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise FolderTakenError(
            f"{folder} (runtime_dir) is another user's; name a folder that does not exist yet"
        )
    if status.st_mode & 0o022:
        folder.chmod(status.st_mode & 0o755)


def _lock(opened: int, folder: Path) -> None:
    """Lock the folder itself: systemd-tmpfiles spares a locked folder in /tmp (tmpfiles.d(5)).

    After ten days it would otherwise remove the settings, which every restart reads.
    """
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FolderTakenError(f"another daemon runs in {folder} (runtime_dir)") from error
