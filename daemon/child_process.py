"""The lifeline: a process that outlives its parent ends, and says why it could not start.

The supervisor may be killed at any moment, also before its children have come to their first line.
So it names itself to them in their environment: a child that finds another parent ends. From then
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
    """Start `python -m module`, one of ours that ties itself to this process."""
    return subprocess.Popen(
        # -P: a server.py or a configs folder where the user stands is not ours.
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        # Ctrl-C reaches the parent alone, which ends the others in order.
        start_new_session=True,
        env=environment_of_children(num_threads),
        pass_fds=pass_fds,
    )


def tie_to_parent() -> None:
    """End this process (SIGKILL) when its parent dies. Call it first thing, in the main thread.

    The parent is the process that `PARENT` names, or the present one; this process names itself to
    its own children.
    """
    parent = int(os.environ.get(PARENT, os.getppid()))
    os.environ[PARENT] = str(os.getpid())
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True).start()


def leave_with(main: Callable[[], int]) -> NoReturn:
    """Run a process's `main` and end at once with the status that it returns or exits with.

    Taking the interpreter apart, with all of torch in it, would take a second more, and a signal
    that comes meanwhile would leave a traceback in the log.
    """
    try:
        code = main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def environment_of_children(num_threads: int | None) -> dict[str, str]:
    """What this process's children get: settings reach them through the runtime folder only."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    root = str(Path(__file__).resolve().parent.parent)
    kept["PYTHONPATH"] = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    # torchrun would set it to 1 with a warning; the stages set their own number of threads.
    kept.setdefault("OMP_NUM_THREADS", str(num_threads or 1))
    kept["TOKENIZERS_PARALLELISM"] = "false"
    kept[PARENT] = str(os.getpid())
    return kept


def report_failure(folder: Path, line: str) -> None:
    """Leave the root cause of a failure that no restart can mend; the first one is kept.

    Where it cannot be left, as on a full disk, it is in the log at least.
    """
    told = " ".join(line.split())
    try:
        with (folder / FAILURE).open("x") as file:
            file.write(told)
    except FileExistsError:
        pass
    except OSError as error:
        with suppress(OSError):  # an empty one would keep others' from being left
            (folder / FAILURE).unlink(missing_ok=True)
        log.error("%s; this could not be left in the runtime folder: %s", told, error)


def reported_failure(folder: Path) -> str | None:
    """The root cause left by any process of the daemon."""
    with suppress(OSError):
        return (folder / FAILURE).read_text() or None
    return None


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_INTERVAL_S)
    os.kill(os.getpid(), signal.SIGKILL)
