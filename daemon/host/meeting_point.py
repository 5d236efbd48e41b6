"""The meeting point of several nodes: where the first one listens for them, or why it cannot.

The engine listens at `master_addr` and `master_port`, unless there is a `stage_endpoint`; torch's
store has the next port.
"""

import errno
import socket

from configs.config import Config
from configs.schema.nodes import ANY_ADDRESS, NodesConfig
from daemon.host import addresses
from daemon.start_error import StartError

_NO_SUCH_ADDRESS = "on the first node it must be one of its own; this host has"


class AddressError(StartError, OSError):
    """An address or a port of this node cannot be used; the message is one line for the user."""

    def __init__(self, line: str, number: int | None = None) -> None:
        super().__init__(line)
        self.errno = number

    def __str__(self) -> str:
        return str(self.args[0])


def check_node(config: Config) -> None:
    """Check the addresses of one of several nodes. Raises `AddressError`.

    The first node binds both of its ports for a moment, without listening.
    """
    nodes = config.nodes
    if nodes.nnodes == 1:
        return
    if nodes.node_ip is not None:
        interface_of(nodes.node_ip)
    if nodes.node_rank == 0:
        check_engine_port(config)
        bind_store(nodes).close()


def interface_of(node_ip: str) -> str:
    """The network interface with the address of `--node-ip`. Raises `AddressError`."""
    interface = addresses.interface_of_address(node_ip)
    if interface is None:
        raise AddressError(
            f"node_ip: no interface of this node has the address {node_ip} (--node-ip); it has "
            f"{addresses.describe_own()}",
            errno.EADDRNOTAVAIL,
        )
    return interface


def check_engine_port(config: Config) -> None:
    """Bind the port at which the other nodes reach the engine. Raises `AddressError`."""
    given, nodes = config.runtime.stage_endpoint, config.nodes
    host, _, port = nodes.endpoint(given).removeprefix("tcp://").rpartition(":")
    if given in (None, nodes.endpoint()):
        what, remedy = "master_port", "give another --master-port on all nodes"
        _bind(nodes.master_addr, nodes.master_port, "master_addr", what, remedy).close()
    else:
        remedy = "give another --stage-endpoint on all nodes"
        address = "0.0.0.0" if host in ANY_ADDRESS else host.strip("[]")
        _bind(address, int(port), "stage_endpoint", "stage_endpoint", remedy).close()


def bind_store(config: NodesConfig) -> socket.socket:
    """A socket for the store, which does not listen yet. Raises `AddressError`."""
    return _bind(
        config.master_addr,
        config.store_port,
        "master_addr",
        "the store's, master_port + 1",
        "give another --master-port on all nodes",
    )


def explain_engine(config: Config, number: int | None) -> str:
    """What keeps the engine from listening, in one line; empty if the error has another cause."""
    if config.nodes.nnodes > 1 and number in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
        try:
            check_engine_port(config)
        except AddressError as obstacle:
            return str(obstacle)
    return ""


def _bind(
    host: str, port: int, address_setting: str, port_setting: str, remedy: str
) -> socket.socket:
    try:
        family, address = addresses.resolve(host, port)
    except OSError as error:
        raise AddressError(
            f"{address_setting} {host}: this name is not known here ({error.strerror}); "
            f"{_NO_SUCH_ADDRESS} {addresses.describe_own()}",
            error.errno,
        ) from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            line = (
                f"port {port} ({port_setting}) is in use on {host}; stop what uses it, or {remedy}"
            )
        elif error.errno == errno.EADDRNOTAVAIL:
            own = addresses.describe_own()
            line = (
                f"{address_setting} {host}: this host has no such address; {_NO_SUCH_ADDRESS} {own}"
            )
        else:
            line = f"cannot listen at {host}, port {port} ({port_setting}): {error.strerror}"
        raise AddressError(line, error.errno) from error
    return bound
