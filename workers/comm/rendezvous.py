"""The rendezvous: how the stages of one host find each other, without an open port.

torchrun's own (c10d) and `init_process_group` by environment each keep a store on a port of all
interfaces, and torchrun unpickles what it finds in its own: whoever reaches that port could run
code here. On one host there is nobody to wait for, and a file in the runtime folder does for the
addresses that the stages tell each other.
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
    """torchrun on one host has only itself to agree with.

    It asks for newcomers ten times a second: with that its pulse beats.
    """

    def __init__(self, watchdog_file: WatchdogFile, parameters: RendezvousParameters) -> None:
        self._run_id = parameters.run_id
        self._watchdog_file = watchdog_file

    def get_backend(self) -> str:
        """The name that torchrun's settings have for it."""
        return BACKEND

    def next_rendezvous(self) -> RendezvousInfo:
        """All are here: this one."""
        nowhere = RendezvousStoreInfo("127.0.0.1", 0)  # see `group_store`
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=nowhere)

    def is_closed(self) -> bool:
        """Nobody closes it."""
        return False

    def set_closed(self) -> None:
        """It has nobody to tell."""

    def num_nodes_waiting(self) -> int:
        """Nobody else may come."""
        self._watchdog_file.beat()
        return 0

    def get_run_id(self) -> str:
        """The same for all lives of the group."""
        return self._run_id

    def shutdown(self) -> bool:
        """There is nothing to end."""
        return True


def register(watchdog_file: WatchdogFile) -> None:
    """Let torchrun know of `BACKEND`."""
    rendezvous_handler_registry.register(BACKEND, partial(OneHost, watchdog_file))


def forget_groups(folder: Path) -> None:
    """Remove the files of groups that are gone."""
    for file in folder.glob("group-*"):
        file.unlink(missing_ok=True)


def group_store(folder: Path, timeout: timedelta) -> FileStore:
    """Where the stages of one life of the group meet; `folder` is their user's alone.

    Each life has a file of its own: what stands in another's is of no use, and misleads.
    """
    incarnation = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    store = FileStore(str(folder / f"group-{incarnation}"), int(os.environ["WORLD_SIZE"]))
    store.set_timeout(timeout)
    return store
