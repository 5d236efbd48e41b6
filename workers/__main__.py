"""The stages' parent process: `python -m workers RUNTIME_DIR INCARNATION`.

The supervisor starts it. INCARNATION counts the torchrun processes before this one.
"""

import sys

from daemon import child_process, log_file


def main() -> int:
    """Run the stages; returns the exit status."""
    child_process.tie_to_parent()
    log_file.follow()
    # A late import: torch takes seconds, in which the parent may already have ended.
    from workers import stage_restarts

    return stage_restarts.main(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    child_process.leave_with(main)
