"""Hosts on one machine: network namespaces whose virtual network cards are on one bridge.

The test itself is on the bridge, so that it reaches every host. Needs root.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Self

import psutil
import pytest

_COUNT = count()
NETWORK = "198.18"  # for tests of networks (RFC 2544)
NETWORK_V6 = "fd00:7d"  # unique local addresses (RFC 4193)
CARD = "card0"
ROOT = Path(__file__).parents[1]


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
        self._links: dict[int, subprocess.Popen[str]] = {}

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

    @property
    def own_address(self) -> str:
        """The address of the test itself."""
        return f"{self._prefix}.254"

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

    def slow_down(self, host: int, milliseconds: float, gbit_per_s: float = 0) -> None:
        """What is sent to and from a host takes so long from now on.

        It has a new card, so connections to it break the first time. Raises `HostsImpossibleError`
        where the kernel has no TAP devices.
        """
        if host not in self._links:
            _try_ip("link", "delete", self._port(host))
            self._links[host] = self._exits.enter_context(
                _slow_link(f"{self._id}c{host}", self._port(host))
            )
            _ip("link", "set", f"{self._id}c{host}", "netns", self._name(host), "name", CARD)
            self._connect(host)
        print(milliseconds, gbit_per_s, file=self._links[host].stdin, flush=True)

    def _set_up(self) -> None:
        bridge = self._id
        _ip("link", "add", bridge, "type", "bridge")
        self._exits.callback(_try_ip, "link", "delete", bridge)
        _ip("address", "add", f"{self.own_address}/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for host in range(self._number):
            name, port = self._name(host), self._port(host)
            _ip("netns", "add", name)
            self._exits.callback(_try_ip, "netns", "delete", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("link", "add", port, "type", "veth", "peer", "name", CARD, "netns", name)
            self._connect(host)

    def _connect(self, host: int) -> None:
        """Put the port of a host's card on the bridge, and give the card its addresses."""
        name = self._name(host)
        _ip("link", "set", self._port(host), "master", self._id, "up")
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


@contextmanager
def _slow_link(card: str, port: str) -> Iterator[subprocess.Popen[str]]:
    """The process of `tests/slow_link.py`, once its devices are there."""
    command = [sys.executable, "-m", "tests.slow_link", card, port]
    link = subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with link:  # its standard input is closed at the end, which ends it
        if not link.stdout or not link.stdout.readline():
            problem = link.communicate()[1].strip().rpartition("\n")[2]
            raise HostsImpossibleError(f"the kernel has no slow links: {problem}")
        yield link


def slow_down(hosts: Hosts, milliseconds: float) -> None:
    """The link of the second host; the test is skipped where that is impossible."""
    try:
        hosts.slow_down(1, milliseconds)
    except HostsImpossibleError as error:
        pytest.skip(str(error))


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
