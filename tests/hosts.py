"""Hosts on one machine: network namespaces whose virtual network cards are on one bridge.

The test itself is on the bridge, so that it reaches every host. Needs root.
"""

import os
import subprocess
from contextlib import ExitStack
from itertools import count
from typing import Self

import psutil

_COUNT = count()
NETWORK = "198.18"  # for tests of networks (RFC 2544)
NETWORK_V6 = "fd00:7d"  # unique local addresses (RFC 4193)
CARD = "card0"


class HostsImpossibleError(Exception):
    """There can be no such hosts here; the message says why."""


class Hosts:
    """`number` hosts for the length of a `with` block. Raises `HostsImpossibleError`."""

    def __init__(self, number: int) -> None:
        self._number = number
        # The kernel removes interfaces a moment after their namespace: names are not used again.
        self._id = f"tdp{os.getpid() % 10_000}{next(_COUNT)}"
        self._prefix = _free_prefix()
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        if os.geteuid():
            raise HostsImpossibleError("needs root")
        try:
            self._set_up()
        except (OSError, subprocess.CalledProcessError) as error:
            self._exits.close()
            raise HostsImpossibleError(f"no network namespaces here: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def address(self, host: int) -> str:
        """The address of a host."""
        return f"{self._prefix}.{host + 1}"

    def ipv6_address(self, host: int) -> str:
        """Its second address. Raises `HostsImpossibleError` where the kernel has no IPv6."""
        try:
            _ip("-n", self._name(host), "route", "get", self._ipv6(host))
        except subprocess.CalledProcessError as error:
            raise HostsImpossibleError("the kernel has no IPv6") from error
        return self._ipv6(host)

    def under(self, host: int) -> list[str]:
        """The command that runs another one on a host."""
        return ["ip", "netns", "exec", self._name(host)]

    def cut(self, host: int) -> None:
        """Nothing arrives at a host any more, nor from it."""
        _ip("link", "set", self._port(host), "down")

    def mend(self, host: int) -> None:
        """What is sent arrives again."""
        _ip("link", "set", self._port(host), "up")

    def delay(self, host: int, milliseconds: float) -> None:
        """What is sent to a host arrives later. Raises `HostsImpossibleError` without netem."""
        command = ["tc", "qdisc", "replace", "dev", self._port(host), "root", "netem"]
        try:
            subprocess.run(
                [*command, "delay", f"{milliseconds}ms"], check=True, capture_output=True
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise HostsImpossibleError(f"the kernel cannot delay packets: {error}") from error

    def _set_up(self) -> None:
        bridge = self._id
        _ip("link", "add", bridge, "type", "bridge")
        self._exits.callback(_try_ip, "link", "delete", bridge)
        _ip("address", "add", f"{self._prefix}.254/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in range(self._number):
            name, port = self._name(host), self._port(host)
            _ip("netns", "add", name)
            self._exits.callback(_try_ip, "netns", "delete", name)
            _ip("link", "add", port, "type", "veth", "peer", "name", CARD, "netns", name)
            _ip("link", "set", port, "master", bridge, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", CARD)
            _ip("-n", name, "link", "set", CARD, "up")
            # Without the detection of duplicates, which keeps a new address unusable for a second.
            _try_ip("-n", name, "address", "add", f"{self._ipv6(host)}/64", "dev", CARD, "nodad")

    def _ipv6(self, host: int) -> str:
        return f"{NETWORK_V6}::{host + 1}"

    def _name(self, host: int) -> str:
        return f"{self._id}-{host}"

    def _port(self, host: int) -> str:
        return f"{self._id}p{host}"


def _free_prefix() -> str:
    """The first three numbers of a network that no other hosts on this machine have."""
    cards = psutil.net_if_addrs().values()
    taken = {own.address.rpartition(".")[0] for addresses in cards for own in addresses}
    first = os.getpid() % 256  # other processes look at the same time
    prefixes = (f"{NETWORK}.{(first + i) % 256}" for i in range(256))
    return next(prefix for prefix in prefixes if prefix not in taken)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _try_ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=False, capture_output=True)
