"""`python -m predictor RUNTIME_DIR`: the predictor of a daemon that the supervisor has set up."""

import signal
import sys
from pathlib import Path

from configs import lifeline, log_file


def main() -> int:
    """Serve until SIGTERM; the exit status."""
    lifeline.tie_to_parent()
    log_file.follow()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Late: torch takes seconds, in which the parent may already be gone.
    from predictor import process

    return process.main(Path(sys.argv[1]))


if __name__ == "__main__":
    lifeline.leave_with(main)
