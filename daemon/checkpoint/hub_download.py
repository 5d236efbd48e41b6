"""The downloader: `python -m daemon.checkpoint.hub_download JSON`, run by `hub_files`.

A process of its own can be killed; the threads of the hub's library cannot. Its last line is the
folder, or, with exit code 1, why there is none.
"""

import json
import sys

from daemon.checkpoint.hub import line_of
from daemon.processes import child_process


def main() -> int:
    """Fetch the files that the arguments of `snapshot_download`, a JSON object, name."""
    child_process.tie_to_parent()
    from huggingface_hub import snapshot_download

    try:
        print(snapshot_download(**json.loads(sys.argv[1])))  # noqa: T201
    # Of the hub's library, of its HTTP client, or of the disk.
    except Exception as error:
        print(line_of(error))  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    child_process.leave_with(main)
