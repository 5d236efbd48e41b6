"""A cluster: a daemon whose stages are on several hosts (network namespaces)."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import pytest

from tests.end_to_end.daemon import SECRET, Daemon
from tests.hosts import Hosts


class Cluster:
    """One `tdpipe serve` on each host for the length of a `with` block, started in this order.

    `nodes[0]` is the first node, with the server. Node i has the arguments `own[i]` besides.
    """

    def __init__(
        self,
        hosts: Hosts,
        order: Sequence[int],
        folder: Path,
        *arguments: str,
        own: Mapping[int, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        common = [*arguments, *_common_flags(hosts, len(order)), "--device", "cpu"]
        self.hosts = hosts
        self.nodes = [
            Daemon(
                folder / f"node{rank}",
                *common,
                *_own_flags(rank),
                *own.get(rank, ()),
                under=hosts.under(rank),
                address=hosts.address(rank),
            )
            for rank in sorted(order)
        ]
        self._order = order
        self._exits = ExitStack()

    @property
    def first(self) -> Daemon:
        """The node with the server."""
        return self.nodes[0]

    def __enter__(self) -> Self:
        try:
            for rank in self._order:
                self._exits.push(self.nodes[rank].__exit__)
                self.nodes[rank].start()
            self.first.wait_ready()
        except BaseException:
            self._exits.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._exits.__exit__(*error)  # type: ignore[arg-type]


def spread(hosts: Hosts, num_nodes: int, patch: pytest.MonkeyPatch) -> None:
    """From now on, a daemon's stages run on all hosts, unless it has fewer stages than hosts."""
    start, end = Daemon.start, Daemon.__exit__
    ports = count(29500, 10)  # daemons that run at the same time share the hosts

    def start_spread(self: Any) -> None:
        given = [*self._arguments]
        num_stages = int(given[given.index("-pp") + 1]) if "-pp" in given else 2
        self.others = []
        if num_stages >= num_nodes and not self._under:
            common = [*given, *_common_flags(hosts, num_nodes), "--master-port", str(next(ports))]
            self._arguments = (*common, *_own_flags(0))
            self._under, self._address = hosts.under(0), hosts.address(0)
            for rank in range(1, num_nodes):
                other = Daemon(
                    self.folder / f"node{rank}",
                    *common,
                    *_own_flags(rank),
                    cwd=self._cwd,
                    under=hosts.under(rank),
                )
                start(other)
                self.others.append(other)
        start(self)

    def end_spread(self: Any, *error: Any) -> None:
        end(self, *error)
        for other in self.others:
            end(other, *error)

    patch.setattr(Daemon, "start", start_spread)
    patch.setattr(Daemon, "__exit__", end_spread)


def _common_flags(hosts: Hosts, num_nodes: int) -> list[str]:
    flags = ["--nnodes", str(num_nodes), "--master-addr", hosts.address(0)]
    return [*flags, "--cluster-secret", SECRET]


def _own_flags(rank: int) -> list[str]:
    if rank:
        return ["--node-rank", str(rank), "--headless"]
    return ["--node-rank", "0", "--host", "0.0.0.0"]
