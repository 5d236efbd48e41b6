"""Child processes: a child ends when its parent has ended, and reports why it could not start.

The supervisor may be killed at any moment, also before its children have run their first line. So
it passes its process id to them in their environment: a child with another parent ends. From then
on the kernel's parent-death signal ends it at once on Linux, and a watch on the parent's id does so
elsewhere.
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

from configs.part import ENV_PREFIX

WATCH_INTERVAL_S = 0.5
_PR_SET_PDEATHSIG = 1
FAILURE = "failure.txt"
PARENT = "_TDPIPE_PARENT"

log = logging.getLogger("tdpipe")


def start(
    module: str, *arguments: str, num_threads: int | None = None, pass_fds: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Start `python -m module`, a module that ties itself to this process."""
    return subprocess.Popen(
        # -P: a server.py or a configs folder in the working directory must not be imported.
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        # Ctrl-C reaches only the parent, which ends the others in order.
        start_new_session=True,
        env=environment_of_children(num_threads),
        pass_fds=pass_fds,
    )


def tie_to_parent() -> None:
    """End this process (SIGKILL) when its parent dies. Call it first thing, in the main thread.

    The parent is the process that `PARENT` names, or else the present one; this process passes its
    own id to its children.
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
    """Run a process's `main` and end at once with the status that it returns or exits with.

    Tearing down the interpreter, with all of torch in it, would take a second more, and a signal in
    that time would leave a traceback in the log.
    """
    try:
        code = main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def environment_of_children(num_threads: int | None) -> dict[str, str]:
    """The environment of this process's children; their settings are in the runtime folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    root = str(Path(__file__).resolve().parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    # torchrun would set it to 1 with a warning; the stages set their own number of threads.
    kept.setdefault("OMP_NUM_THREADS", str(num_threads or 1))
    kept["TOKENIZERS_PARALLELISM"] = "false"
    kept[PARENT] = str(os.getpid())
    return kept


def report_failure(folder: Path, line: str) -> None:
    """Write down the root cause of a failure that no restart can mend; the first one is kept.

    Where it cannot be written, as on a full disk, it is at least in the log.
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
    """The root cause that a process of the daemon has reported."""
    with suppress(OSError):
        return (folder / FAILURE).read_text() or None
    return None


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGKILL)
