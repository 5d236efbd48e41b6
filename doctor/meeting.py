"""The meeting: the nodes find each other as for a group of stages, before any model is loaded."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import (  # type: ignore[attr-defined]
    DistNetworkError,
    DistStoreError,
    PrefixStore,
    Store,
)

from configs.config import Config
from daemon.host.node_facts import facts_of
from doctor.attendance import GONE_S, Attendance
from engine.nodes import Nodes
from wire.messages import NodeState
from wire.sockets import Hub
from workers.comm import rendezvous
from workers.comm.node_link import INTERVAL_S, LOG_INTERVAL_S, NodeLink, RefusedError

NOTE_TIMEOUT_S = 3600.0
"""A node that is there may read its model for so long: 140 GB at 50 MB/s take 47 minutes."""
_FIRST_HAS_LEFT = "the first node has ended, or cannot be reached"

log = logging.getLogger("tdpipe")


class ApartError(Exception):
    """The nodes did not meet, or one has left; the message says what was missing."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """All nodes, and a store in which they leave each other notes."""

    node: int
    num_nodes: int
    store: Store
    check: Callable[[], None] = lambda: None
    """Called each second of a wait; may raise `ApartError`."""

    def tell(self, key: str, value: str) -> None:
        """Leave a note of this node. Raises `ApartError` if the first node has left."""
        try:
            self.store.set(f"{key}-{self.node}", value)
        except DistNetworkError as error:  # it has the store
            raise ApartError(_FIRST_HAS_LEFT) from error

    def hear(self, key: str, node: int) -> str:
        """Another node's note; waits for it, and logs that. Raises `ApartError` if it is missing.

        Every node must leave it: what depends on a node's own options is a note itself.
        """
        name, began_at = f"{key}-{node}", time.monotonic()
        next_log_at = began_at + LOG_INTERVAL_S
        while True:
            try:
                self.store.wait([name], timedelta(seconds=1))
                return str(self.store.get(name).decode())
            except DistStoreError as error:
                self.check()
                now = time.monotonic()
                if now >= next_log_at:
                    log.info("node %d waits for node %d (%s)", self.node, node, key)
                    next_log_at = now + LOG_INTERVAL_S
                if now - began_at > NOTE_TIMEOUT_S:
                    raise ApartError(f"node {node} has not answered in time ({key})") from error
            except DistNetworkError as error:
                raise ApartError(_FIRST_HAS_LEFT) from error

    def check_for(self, seconds: float) -> None:
        """Find out whether a node has left. Raises `ApartError` if one has."""
        ends_at = time.monotonic() + seconds
        while time.monotonic() < ends_at:
            self.check()
            time.sleep(INTERVAL_S)

    def hear_all(self, key: str) -> list[str]:
        """The notes of all nodes, in order."""
        return [self.hear(key, node) for node in range(self.num_nodes)]


@contextmanager
def meeting(config: Config) -> Iterator[Meeting]:
    """Wait for all nodes. Raises `ApartError`, and `OSError` or `ZMQError` for a lost port."""
    nodes, pipeline = config.nodes, config.pipeline
    facts, num_stages = _facts(config), pipeline.pipeline_parallel_size
    timeout_s = pipeline.stage_start_timeout
    with ExitStack() as stack:
        host = listener = None
        if nodes.node_rank == 0:
            host = stack.enter_context(_Host(config, Nodes(nodes.nnodes, num_stages, facts)))
            listener = stack.enter_context(closing(rendezvous.listen(nodes)))
        link = stack.enter_context(
            NodeLink(
                nodes,
                _endpoint(config),
                config.runtime.secret,
                nodes.num_local_stages(pipeline),
                facts,
                lambda: None,
            )
        )

        def check() -> None:
            if host and (problem := host.attendance.problem(time.monotonic())):
                raise ApartError(problem)
            if link.silent_s() > GONE_S:
                raise ApartError(_FIRST_HAS_LEFT)

        try:
            epoch = link.next_epoch(check, timeout_s)
        except (RefusedError, TimeoutError) as error:
            raise ApartError(str(error)) from error
        store = rendezvous.nodes_store(nodes, timedelta(seconds=timeout_s), listener)
        notes = PrefixStore(f"doctor-{epoch}", store)
        met = Meeting(nodes.node_rank, nodes.nnodes, notes, check)
        if host:
            host.attendance.begin()
        yield met
        # The first node has the store; the others stay, since one that leaves is an error.
        met.tell("has ended", "")
        if host:
            met.hear_all("has ended")
            met.tell("is over", "")
        else:
            with suppress(ApartError):
                met.hear("is over", 0)


def _facts(config: Config) -> dict[str, str]:
    """Those of a daemon, but for a word: neither may take part in a meeting of the other's."""
    facts = facts_of(config)
    return facts | {"tdpipe": f"{facts['tdpipe']} (doctor)"}


def _endpoint(config: Config) -> str:
    """Where the engine would listen."""
    return config.nodes.endpoint(config.runtime.stage_endpoint)


class _Host:
    """Answers the nodes as the engine does, in a thread."""

    def __init__(self, config: Config, nodes: Nodes) -> None:
        self.attendance = Attendance()
        self._nodes = nodes
        endpoint, secret = _endpoint(config), config.runtime.secret
        self._hub: Hub[NodeState] = Hub(endpoint, NodeState, secret)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Host":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._hub.close()

    def _run(self) -> None:
        while not self._is_over.wait(INTERVAL_S / 4):
            for sender, state in self._hub.drain():
                now = time.monotonic()
                order = self._nodes.take(state, now)
                self.attendance.take(state, order.refusal, now)
                self._hub.send(sender, order)
