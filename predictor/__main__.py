"""`python -m predictor RUNTIME_DIR INCARNATION`: the predictor process of a daemon.

INCARNATION is the number of earlier predictor processes of the daemon.
"""

import signal
import sys
from pathlib import Path

from daemon.observability import log_file
from daemon.processes import child_process
from daemon.processes.process_title import entitle


def main() -> int:
    """Serve until SIGTERM; returns the exit status."""
    child_process.tie_to_parent()
    entitle("predictor")
    log_file.follow()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # A late import: torch takes seconds, in which the parent may already have ended.
    from predictor import process

    return process.main(Path(sys.argv[1]), int(sys.argv[2]))


if __name__ == "__main__":
    child_process.leave_with(main)
