"""`python -m daemon ARGV`: `tdpipe serve ARGV`, which ends with the process that started it."""

import sys

from daemon.observability import log_file
from daemon.processes import child_process
from daemon.supervisor import main

if __name__ == "__main__":
    child_process.tie_to_parent()
    log_file.follow()
    sys.exit(main(sys.argv[1:]))
