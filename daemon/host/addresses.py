"""Addresses: the one rule by which a name becomes an address, and which of them are this host's.

A name that has both kinds of address is used with IPv4: on many hosts an IPv6 address is known,
but leads nowhere. ZeroMQ connects by the same rule (`wire.sockets`).
"""

import socket
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import psutil

Family = socket.AddressFamily


def resolve(host: str, port: int = 0) -> tuple[Family, Any]:
    """The kind of address that a name or an address has, and what a socket takes for it.

    Raises `socket.gaierror`, an `OSError`, for a name that is not known.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    family, _, _, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
    return family, address


def numeric(host: str) -> str:
    """The address of a name, without brackets. Raises `socket.gaierror`."""
    _, address = resolve(host)
    return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]


def numeric_endpoint(endpoint: str) -> str:
    """A ZeroMQ endpoint with the address of its host. Raises `socket.gaierror`."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not endpoint.startswith("tcp://") or host == "*":
        return endpoint
    address = numeric(host.strip("[]"))
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"


def is_loopback(address: str) -> bool:
    """Whether no other host can reach this address."""
    return plain(address).is_loopback


def interface_of_address(address: str) -> str | None:
    """The network interface of this host that has the address, or None."""
    wanted = plain(address)
    return next((name for name, own in _own_addresses() if own == wanted), None)


def describe_own() -> str:
    """The addresses at which other hosts may reach this one."""
    usable = [
        f"{address} ({name})"
        for name, address in _own_addresses()
        if not address.is_loopback and not address.is_link_local
    ]
    return ", ".join(usable) or "none besides loopback"


def plain(address: str) -> IPv4Address | IPv6Address:
    """The address without the interface behind a %, and an IPv4 address as such."""
    found = ip_address(address.partition("%")[0])
    return (isinstance(found, IPv6Address) and found.ipv4_mapped) or found


def _own_addresses() -> Iterator[tuple[str, IPv4Address | IPv6Address]]:
    for interface, addresses in psutil.net_if_addrs().items():
        for each in addresses:
            if each.family in (socket.AF_INET, socket.AF_INET6):
                yield interface, plain(each.address)
