"""`python -m workers.agent RUNTIME_DIR`: torchrun, with the stages' program and our settings.

torchrun starts one process per stage, notices one that dies within a tenth of a second and
restarts the whole group. This wrapper keeps its wall of text after a failure out of the log: the
stages have told the cause in one line.
"""

import logging
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from configs import lifeline, loader


def main() -> int:
    """Run the group until it ends; 1 when it has failed more often than it may be restarted."""
    lifeline.tie_to_parent()
    folder = sys.argv[1]
    config = loader.load_saved(Path(folder))
    logging.disable(logging.ERROR)
    try:
        torchrun(
            [
                "--standalone",
                f"--nproc-per-node={config.pipeline_parallel_size}",
                f"--max-restarts={config.max_restarts}",
                "--monitor-interval=0.1",
                f"--log-dir={folder}",
                "--module",
                "workers",
                folder,
            ]
        )
    except SignalException:
        return 0
    except ChildFailedError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
