"""The rendezvous: how the stages of one host find each other, without an open port.

torchrun's own (c10d) and `init_process_group` by environment each keep a store on a port of all
interfaces, and torchrun unpickles what it finds in its own: any host that reaches that port could
run code here. On one host there are no other nodes to wait for, and a file in the runtime folder is
enough for the addresses that the stages exchange.
"""

import os
from datetime import timedelta
from functools import partial
from pathlib import Path

from torch.distributed import FileStore, HashStore  # type: ignore[attr-defined]
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStoreInfo,
    rendezvous_handler_registry,
)

from daemon.watchdog_file import WatchdogFile

BACKEND = "one-host"


class OneHost(RendezvousHandler):
    """torchrun's rendezvous on one host, which is its only member.

    torchrun asks for new nodes ten times a second; each call writes its watchdog file.
    """

    def __init__(self, watchdog_file: WatchdogFile, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._watchdog_file = watchdog_file

    def get_backend(self) -> str:
        """The name of this backend in torchrun's settings."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """Returns at once: this host is the only one."""
        nowhere = RendezvousStoreInfo("127.0.0.1", 0)  # see `group_store`
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=nowhere)

    def is_closed(self) -> bool:
        """Always false: it cannot be closed."""
        return False

    def set_closed(self) -> None:
        """Does nothing: there is no other node to notify."""

    def num_nodes_waiting(self) -> int:
        """Always 0: no other node can join."""
        self._watchdog_file.beat()
        return 0

    def get_run_id(self) -> str:
        """The same for all incarnations of the group."""
        return self._run_id

    def shutdown(self) -> bool:
        """Does nothing: there is nothing to close."""
        return True


def register(watchdog_file: WatchdogFile) -> None:
    """Register `BACKEND` with torchrun."""
    rendezvous_handler_registry.register(BACKEND, partial(OneHost, watchdog_file))


def forget_groups(folder: Path) -> None:
    """Remove the files of groups that have ended."""
    for file in folder.glob("group-*"):
        file.unlink(missing_ok=True)


def group_store(folder: Path, timeout: timedelta) -> FileStore:
    """The store in which the stages of one incarnation meet; only their user can read `folder`.

    Each incarnation has a file of its own: addresses left by an earlier one are stale.
    """
    incarnation = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    store = FileStore(str(folder / f"group-{incarnation}"), int(os.environ["WORLD_SIZE"]))
    store.set_timeout(timeout)
    return store
