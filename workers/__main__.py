"""The stages' parent process: `python -m workers RUNTIME_DIR INCARNATION`.

The supervisor starts it. INCARNATION counts the torchrun processes before this one.
"""

import os
import sys
from pathlib import Path

from daemon.observability import log_file
from daemon.processes import child_process
from daemon.processes.process_title import entitle


def main() -> int:
    """Run the stages; returns the exit status."""
    child_process.tie_to_parent()
    entitle("torchrun")
    log_file.follow()
    # torch warns about hosts without a name.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # A late import: torch takes seconds, in which the parent may already have ended.
    try:
        from workers import stage_restarts
    except (ImportError, OSError) as error:  # OSError: a library of torch is missing
        line = f"the stages cannot import torch or transformers: {error}; install tdpipe again"
        child_process.report_failure(Path(sys.argv[1]), line)
        return 1

    return stage_restarts.main(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    child_process.leave_with(main)
