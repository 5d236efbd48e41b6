"""Child processes: a child ends with its parent, and reports why it could not start.

The supervisor may be killed at any time, even before its children have run their first line.
Therefore it passes its process id to them in the environment, and a child with a different parent
ends. Later, the parent-death signal of the kernel ends the child immediately on Linux; elsewhere, a
thread that polls the parent's id ends it.
"""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from configs.schema.part import ENV_PREFIX

WATCH_INTERVAL_S = 0.5
_PR_SET_PDEATHSIG = 1
FAILURE = "failure.txt"
PARENT = "_TDPIPE_PARENT"

log = logging.getLogger("tdpipe")


def start(
    module: str, *arguments: str, num_threads: int | None = None, pass_fds: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Start `python -m module`; the module must call `tie_to_parent`."""
    return subprocess.Popen(
        # -P: a server.py or a configs folder in the working directory must not be imported.
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        # Ctrl-C must reach only the parent, which ends its children in order.
        start_new_session=True,
        env=environment_of_children(num_threads),
        pass_fds=pass_fds,
    )


def tie_to_parent() -> None:
    """End this process (SIGKILL) when its parent dies.

    Call this first, in the main thread. The parent is the process in the variable `PARENT`, or the
    current parent if it is not set; this process passes its own id to its children.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    os.environ[PARENT] = str(os.getpid())
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), name="parent watch", daemon=True).start()


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Run the `main` of a process, and exit immediately with its status.

    Tearing down an interpreter with torch would take another second, and a signal in that time
    would leave a traceback in the log.
    """
    try:
        code = main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def environment_of_children(num_threads: int | None) -> dict[str, str]:
    """The environment of child processes, which read their settings from the runtime folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    root = str(Path(__file__).resolve().parents[2])
    kept["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    # torchrun would set this to 1 with a warning; the stages set their own number of threads.
    kept.setdefault("OMP_NUM_THREADS", str(num_threads or 1))
    kept["TOKENIZERS_PARALLELISM"] = "false"
    kept[PARENT] = str(os.getpid())
    return kept


def report_failure(folder: Path, line: str) -> None:
    """Write the root cause of a failure that no restart can fix; only the first one is kept.

    If it cannot be written, as on a full disk, it is logged.
    """
    cause = " ".join(line.split())
    try:
        with (folder / FAILURE).open("x") as file:
            file.write(cause)
    except FileExistsError:
        pass
    except OSError as error:
        with suppress(OSError):  # an empty file would keep other causes from being written
            (folder / FAILURE).unlink(missing_ok=True)
        log.error("%s; this could not be written to the runtime folder: %s", cause, error)


def reported_failure(folder: Path) -> str | None:
    """The root cause that a process of the daemon has reported, or None."""
    with suppress(OSError):
        return (folder / FAILURE).read_text() or None
    return None


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGKILL)
