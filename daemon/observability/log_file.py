"""The log file replaces standard error, if it is set, and is reopened on SIGHUP.

All processes of the daemon append to the file, each line in one write, so that lines are not mixed.
After a rotation (logrotate), the supervisor gets SIGHUP, reopens the path and signals its children,
which do the same. A thread waits for the signal, independently of the main thread. All other
threads, and all processes that they start, block SIGHUP, so that it ends none of them. Without a
log file, this module does nothing.
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
    """The file cannot be written; the message is one line for the user."""


def begin(path: Path) -> TextIO:
    """Make the file the standard error of this process and of all processes that it starts.

    Returns the previous standard error. Raises `LogFileError`.
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
    """Reopen the parent's log file whenever the parent does; do nothing if it has none.

    Call this before `logs.set_up`.
    """
    if VARIABLE not in os.environ:
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    # Python would write a long line in pieces, with another process's lines in between.
    raw = io.FileIO(_STDERR, "w", closefd=False)
    sys.stderr = io.TextIOWrapper(raw, errors="backslashreplace", write_through=True)
    threading.Thread(target=_take_signals, name="log file", daemon=True).start()


def _take_signals() -> None:
    while True:
        signal.sigwait({signal.SIGHUP})
        try:
            # The path may have changed: a router's daemon follows its log file, or has its own.
            _open(Path(os.environ[VARIABLE]))
        except OSError as error:
            log.error("cannot reopen the log file, continuing with the old one: %s", error)
        else:
            log.info("reopened the log file")
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
