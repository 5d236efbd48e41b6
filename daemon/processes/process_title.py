"""The title of a process, for ps, top, nvidia-smi and the messages of the kernel's OOM killer.

Without it, torchrun and all stages would have the same command line, because they are forked.
"""

import sys
from pathlib import Path

import setproctitle


def entitle(role: str) -> None:
    """Set the title of this process: what it is, then the module and arguments it runs with.

    The kernel keeps the first 15 characters as the process's name, which is enough for the role.
    """
    module = Path(sys.argv[0]).parent.name
    setproctitle.setproctitle(" ".join([f"tdpipe:{role}", "-m", module, *sys.argv[1:]]))
