"""The log file: what standard error is where one was asked for, opened anew on SIGHUP.

All processes of the daemon append to it, each line in one write, so that lines stay whole. Whoever
has moved it away (logrotate) tells the supervisor, which opens the name anew and tells its
children, and they theirs. A thread takes the signal, whatever the main thread is at. All other
threads have it blocked, and so has every process that they start: it ends nobody. Without a log
file there is nothing of all this.
"""

import io
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TextIO

import psutil

VARIABLE = "_TDPIPE_LOG_FILE"
RIGHTS = 0o640
_STDOUT, _STDERR = 1, 2

log = logging.getLogger("tdpipe")


class LogFileError(Exception):
    """The file cannot be written to; the text is one line for the user."""


def begin(path: Path) -> TextIO:
    """Make the file this process's standard error, and that of all that it starts.

    Returns what was standard error before. Raises `LogFileError`.
    """
    before = os.fdopen(os.dup(_STDERR), "w", buffering=1, errors="backslashreplace")
    try:
        _open(path)
    except OSError as error:
        before.close()
        raise LogFileError(f"cannot write to the log file {path}: {error.strerror}") from error
    os.environ[VARIABLE] = str(path.absolute())
    follow()
    return before


def follow() -> None:
    """Open the parent's log file anew whenever that does so; nothing where it has none.

    Call it before `logs.set_up`.
    """
    path = os.environ.get(VARIABLE)
    if path is None:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Python would write a long line in pieces, between which another process's may come.
    raw = io.FileIO(_STDERR, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(raw, errors="backslashreplace", write_through=True)
    threading.Thread(target=_take_signals, args=(Path(path),), name="log file", daemon=True).start()


def _take_signals(path: Path) -> None:
    while True:
        signal.sigwait({signal.SIGHUP})
        try:
            _open(path)
        except OSError as error:
            log.error("cannot open the log file anew, going on with the old one: %s", error)
        else:
            log.info("opened the log file anew")
        for child in psutil.Process().children():
            try:
                child.send_signal(signal.SIGHUP)
            except psutil.Error:  # it has just ended
                continue


def _open(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, RIGHTS)
    os.dup2(file, _STDERR)
    os.dup2(file, _STDOUT)
    os.close(file)
