"""The rendezvous: lets the stages find each other, on one host without an open port.

torchrun's rendezvous (c10d) and `init_process_group` with `env://` each open a store on a port of
all interfaces, and torchrun unpickles the contents of its store: any host that reaches the port
could run code here. On one host, there are no other nodes to wait for, and a file in the runtime
folder is enough to exchange the addresses of the stages.

Several nodes meet at the engine (`node_link`). For the addresses there is a store of torch on the
first node, which listens on its given address only, and in which nothing is pickled.
"""

import os
import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from torch.distributed import (  # type: ignore[attr-defined]
    FileStore,
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)
from torch.distributed.elastic.rendezvous import (
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from configs.schema.nodes import NodesConfig
from daemon.host import addresses
from daemon.host.meeting_point import bind_store
from daemon.processes.watchdog_file import WatchdogFile
from workers.comm.node_link import NodeLink

EPOCH = "_TDPIPE_EPOCH"
"""The variable with the epoch of the group, if there are several nodes."""
# Connections that may wait to be accepted by the store.
BACKLOG = 1024
# For torchrun's own notes in the store, after all nodes have come.
MEET_TIMEOUT = timedelta(seconds=30)


class _Rendezvous(RendezvousHandler):
    """What both kinds share: torchrun does not decide when nodes join or leave.

    It asks for new nodes ten times a second; each call touches its watchdog file.
    """

    def __init__(self, watchdog_file: WatchdogFile, run_id: str) -> None:
        self._run_id = run_id
        self._watchdog_file = watchdog_file

    def get_backend(self) -> str:
        """The name of this backend in torchrun's settings."""
        return type(self).__name__

    def is_closed(self) -> bool:
        """Return False, because this rendezvous cannot be closed."""
        return False

    def set_closed(self) -> None:
        """Do nothing, because there is no other node to notify."""

    def num_nodes_waiting(self) -> int:
        """Return 0: the stages end if another node has to join, and the group begins anew."""
        self._watchdog_file.beat()
        return 0

    def get_run_id(self) -> str:
        """Return the run id, which is the same for all incarnations of the group."""
        return self._run_id

    def shutdown(self) -> bool:
        """Do nothing, because there is nothing to close."""
        return True


class OneHost(_Rendezvous):
    """A torchrun rendezvous with one host as the only member."""

    def next_rendezvous(self) -> RendezvousInfo:
        """Return at once, because this host is the only one."""
        nowhere = RendezvousStoreInfo("127.0.0.1", 0)  # see `group_store`
        return RendezvousInfo(HashStore(), rank=0, world_size=1, bootstrap_store_info=nowhere)


class ManyNodes(_Rendezvous):
    """A torchrun rendezvous of the nodes that meet at the engine.

    The store is that of torch, on the first node, from the first group to the end of its torchrun
    process; it takes over the `listener` of that node. `timeout_s` limits each wait for the other
    nodes.
    """

    def __init__(
        self,
        watchdog_file: WatchdogFile,
        run_id: str,
        config: NodesConfig,
        link: NodeLink,
        timeout_s: float,
        listener: socket.socket | None,
    ) -> None:
        super().__init__(watchdog_file, run_id)
        self._config, self._link, self._timeout_s = config, link, timeout_s
        self._listener = listener
        self._server: Store | None = None

    def next_rendezvous(self) -> RendezvousInfo:
        """Wait for all nodes. Raises `RefusedError`, `TimeoutError`, and torch's errors."""
        epoch = self._link.next_epoch(self._watchdog_file.beat, self._timeout_s)
        os.environ[EPOCH] = str(epoch)
        if self._listener is not None and self._server is None:
            self._server = nodes_store(self._config, MEET_TIMEOUT, self._listener)
        store = self._server or nodes_store(self._config, MEET_TIMEOUT)
        where = RendezvousStoreInfo(self._config.master_addr, self._config.store_port)
        return RendezvousInfo(
            PrefixStore(f"nodes-{epoch}", store),
            rank=self._config.node_rank,
            world_size=self._config.nnodes,
            bootstrap_store_info=where,
        )


def listen(config: NodesConfig) -> socket.socket:
    """The store's listening socket, on the address of the first node only.

    Raises `AddressError`, an `OSError`.
    """
    listener = bind_store(config)
    listener.listen(BACKLOG)
    return listener


def nodes_store(
    config: NodesConfig, timeout: timedelta, listener: socket.socket | None = None
) -> TCPStore:
    """The store of the first node, or a connection to it."""
    host = config.master_addr
    with suppress(OSError):  # a name that is not known now may be known to torch in a moment
        host = addresses.numeric(host)
    return TCPStore(
        host,
        config.store_port,
        is_master=listener is not None,
        timeout=timeout,
        wait_for_workers=False,
        master_listen_fd=None if listener is None else listener.detach(),  # it is closed there
    )


def forget_groups(folder: Path) -> None:
    """Remove the files of groups that have ended."""
    for file in folder.glob("group-*"):
        file.unlink(missing_ok=True)


def stages_store(config: NodesConfig, folder: Path, timeout: timedelta) -> Store:
    """The store of one incarnation of the stages, in which they find each other."""
    if config.nnodes == 1:
        return group_store(folder, timeout)
    return PrefixStore(f"stages-{os.environ[EPOCH]}", nodes_store(config, timeout))


def group_store(folder: Path, timeout: timedelta) -> FileStore:
    """The store on one host, a file; only their user can read `folder`.

    Each incarnation has its own file, because the addresses of an earlier one are stale.
    """
    incarnation = f"{os.environ['TORCHELASTIC_RUN_ID']}-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    store = FileStore(str(folder / f"group-{incarnation}"), int(os.environ["WORLD_SIZE"]))
    store.set_timeout(timeout)
    return store
