"""The rendezvous: lets the stages on one host find each other without an open port.

torchrun's rendezvous (c10d) and `init_process_group` with `env://` each open a store on a port of
all interfaces, and torchrun unpickles the contents of its store: any host that reaches the port
could run code here. On one host, there are no other nodes to wait for, and a file in the runtime
folder is enough to exchange the addresses of the stages.
"""

import os
from datetime import timedelta
from pathlib import Path

from torch.distributed import FileStore, HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from daemon.watchdog_file import WatchdogFile

BACKEND = "one-host"


class OneHost(RendezvousHandler):
    """A torchrun rendezvous with one host as the only member.

    torchrun asks for new nodes ten times a second; each call touches its watchdog file.
    """

    def __init__(self, watchdog_file: WatchdogFile, run_id: str) -> None:
        self._run_id = run_id
        self._watchdog_file = watchdog_file

    def get_backend(self) -> str:
        """The name of this backend in torchrun's settings."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Return at once, because this host is the only one."""
        nowhere = RendezvousStoreInfo("127.0.0.1", 0)  # see `group_store`
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=nowhere)

    def is_closed(self) -> bool:
        """Return False, because this rendezvous cannot be closed."""
        return False

    def set_closed(self) -> None:
        """Do nothing, because there is no other node to notify."""

    def num_nodes_waiting(self) -> int:
        """Return 0, because no other node can join."""
        self._watchdog_file.beat()
        return 0

    def get_run_id(self) -> str:
        """Return the run id, which is the same for all incarnations of the group."""
        return self._run_id

    def shutdown(self) -> bool:
        """Do nothing, because there is nothing to close."""
        return True


def forget_groups(folder: Path) -> None:
    """Remove the files of groups that have ended."""
    for file in folder.glob("group-*"):
        file.unlink(missing_ok=True)


def group_store(folder: Path, timeout: timedelta) -> FileStore:
    """The store of one incarnation of the stages; only their user can read `folder`.

    Each incarnation has its own file, because the addresses of an earlier one are stale.
    """
    incarnation = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    store = FileStore(str(folder / f"group-{incarnation}"), int(os.environ["WORLD_SIZE"]))
    store.set_timeout(timeout)
    return store
