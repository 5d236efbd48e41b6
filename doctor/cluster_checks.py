"""Checks between nodes: names, ports, clocks and the files of the model.

Every node runs them at the same time and in the same order, and reports what it has seen itself.
"""

import hashlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

from configs.config import Config
from daemon.checkpoint.weight_files import find_weights
from daemon.host import addresses
from doctor.findings import Finding, error, ok, warning
from doctor.meeting import Meeting
from workers.stage_restarts import own_address

CONNECT_TIMEOUT_S = 3.0
# Logs of two nodes are hard to compare if their clocks differ by more.
MAX_CLOCK_DIFFERENCE_S = 1.0
_CHUNK = 1 << 24


def check_names(meeting: Meeting, config: Config) -> Iterator[Finding]:
    """Whether this node finds the others by their names, with the addresses that they use."""
    address, name = own_address(config.nodes), socket.gethostname()
    meeting.tell("name", json.dumps([name, address]))
    for node in _others(meeting):
        their_name, their_address = json.loads(meeting.hear("name", node))
        found = _addresses_of(their_name)
        if their_address in found:
            yield ok("names", f"{their_name} (node {node}) is {their_address}")
            continue
        seen = f"finds {', '.join(sorted(found))} for" if found else "does not know"
        yield warning(
            "names",
            f"this node {seen} {their_name}, the name of node {node} ({their_address}); addresses "
            "are used, so only your own tools may miss it: add it to /etc/hosts or the DNS",
        )


def check_ports(meeting: Meeting, config: Config) -> Iterator[Finding]:
    """Whether this node reaches each other one on a port that the system chooses, as gloo does."""
    family, address = addresses.resolve(own_address(config.nodes))
    with closing(
        socket.create_server(address, family=family, backlog=meeting.num_nodes)
    ) as listener:
        thread = threading.Thread(target=_accept_all, args=(listener,), daemon=True)
        thread.start()
        meeting.tell("listens", json.dumps(listener.getsockname()[:2]))
        for node in _others(meeting):
            host, port = json.loads(meeting.hear("listens", node))
            try:
                with socket.create_connection((host, port), CONNECT_TIMEOUT_S):
                    yield ok("ports", f"node {node} is reached at {host}, on any port")
            except OSError as problem:
                yield error(
                    "ports",
                    f"node {node} is not reached at {host}:{port}: {problem}; gloo and NCCL "
                    "connect to ports that the system chooses: admit them in the firewall, or "
                    "name another address with --node-ip",
                )
        meeting.tell("has connected", "")
        meeting.hear_all("has connected")


def check_clocks(meeting: Meeting) -> Iterator[Finding]:
    """How far this node's clock is from the first node's; the round trip limits the accuracy."""
    if meeting.node == 0:
        for node in range(1, meeting.num_nodes):
            meeting.hear("asks for the time", node)
            meeting.tell(f"time for {node}", repr(time.time()))
        return
    for node in range(1, meeting.node):  # one after the other, so that none waits for another
        meeting.hear("has the time", node)
    asked_at = time.time()
    meeting.tell("asks for the time", "")
    theirs = float(meeting.hear(f"time for {meeting.node}", 0))
    heard_at = time.time()
    meeting.tell("has the time", "")
    apart_s = theirs - (asked_at + heard_at) / 2
    text = f"the first node's clock is {abs(apart_s):.2f} s {'ahead' if apart_s > 0 else 'behind'}"
    if abs(apart_s) - (heard_at - asked_at) / 2 > MAX_CLOCK_DIFFERENCE_S:
        yield warning("clocks", f"{text}: logs are hard to compare, run chrony or ntpd")
    else:
        yield ok("clocks", text)


def check_nccl(meeting: Meeting, version: str) -> Iterator[Finding]:
    """Whether NCCL is the first node's: it refuses other versions, which may come with one torch.

    `version` is empty on a node without GPUs, which does not use it.
    """
    meeting.tell("NCCL", version)
    first = meeting.hear("NCCL", 0)
    if meeting.node and version and first and version != first:
        yield error(
            "versions",
            f"NCCL is {version}, on the first node {first}: install the same build of torch",
        )


def check_files(meeting: Meeting, config: Config, *, reads: bool) -> Iterator[Finding]:
    """Whether the files of weights are those of the first node, byte for byte.

    They are read only if all nodes do so, because reading takes minutes.
    """
    meeting.tell("reads files", str(reads))
    without = [i for i, told in enumerate(meeting.hear_all("reads files")) if told != str(True)]
    if without:
        if len(without) < meeting.num_nodes:
            nodes = ", ".join(map(str, without))
            yield warning("model", f"files are not compared: --no-hashes was given on node {nodes}")
        return
    files = find_weights(Path(config.model.model), config.model.load_format)
    hashes = {path.name: _hash(path) for path in files}
    meeting.tell("files", json.dumps(hashes))
    first: dict[str, str] = json.loads(meeting.hear("files", 0))
    if meeting.node and hashes != first:
        names = sorted(n for n in first.keys() | hashes.keys() if first.get(n) != hashes.get(n))
        yield error("model", f"not as on the first node: {', '.join(names)}; copy them again")
    else:
        yield ok("model", f"{len(files)} files of weights, {_size(files)}, read and compared")


def _others(meeting: Meeting) -> Iterator[int]:
    return (node for node in range(meeting.num_nodes) if node != meeting.node)


def _addresses_of(name: str) -> set[str]:
    with suppress(OSError):
        # A link-local address has its interface behind a %.
        return {str(found[4][0]).partition("%")[0] for found in socket.getaddrinfo(name, None)}
    return set()


def _accept_all(listener: socket.socket) -> None:
    with suppress(OSError):  # it is closed
        while True:
            listener.accept()[0].close()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _size(files: list[Path]) -> str:
    return f"{sum(path.stat().st_size for path in files) / 1e9:.1f} GB"
