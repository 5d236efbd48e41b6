"""The runtime folder: where one set of processes meets, taken for as long as they run."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from configs import lifeline, loader
from configs.schema import Config


class FolderTakenError(Exception):
    """Other processes run in this folder; the text is one line for the user."""


@contextmanager
def runtime_folder(config: Config) -> Iterator[Config]:
    """`config` with a folder that is locked, holds these settings, and knows of no failure yet.

    A folder that nobody has chosen is a temporary one. Raises `FolderTakenError`.
    """
    folder = config.runtime_dir or Path(tempfile.mkdtemp(prefix="tdpipe-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with (folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                message = f"another daemon runs in {folder} (runtime_dir)"
                raise FolderTakenError(message) from error
            placed = config.model_copy(update={"runtime_dir": folder})
            (folder / lifeline.FAILURE).unlink(missing_ok=True)
            loader.save(placed, folder)
            yield placed
    finally:
        if config.runtime_dir is None:
            shutil.rmtree(folder, ignore_errors=True)
