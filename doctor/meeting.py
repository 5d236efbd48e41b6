"""The meeting: the nodes find each other as for a group of stages, before any model is loaded."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
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
from engine.nodes import Nodes
from wire.messages import NodeState
from wire.sockets import Hub
from workers.comm import rendezvous
from workers.comm.node_link import INTERVAL_S, REFUSAL_S, NodeLink, RefusedError

GIVING_UP_S = 2.0
"""A node that has been refused for `REFUSAL_S` needs less to print why."""
NOTE_TIMEOUT_S = 3600.0
"""A node that is there may read its model for so long: 140 GB at 50 MB/s take 47 minutes."""
GONE_S = 5.0
"""Of silence; a node tells its state four times a second."""


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
        """Leave a note of this node."""
        self.store.set(f"{key}-{self.node}", value)

    def hear(self, key: str, node: int) -> str:
        """Another node's note; waits for it. Raises `ApartError` if it does not come."""
        name, deadline = f"{key}-{node}", time.monotonic() + NOTE_TIMEOUT_S
        while True:
            try:
                self.store.wait([name], timedelta(seconds=1))
                return str(self.store.get(name).decode())
            except DistStoreError as error:
                self.check()
                if time.monotonic() > deadline:
                    raise ApartError(f"node {node} has not answered in time ({key})") from error
            except DistNetworkError as error:  # it has the store
                raise ApartError("the first node has ended, or cannot be reached") from error

    def hear_all(self, key: str) -> list[str]:
        """The notes of all nodes, in order."""
        return [self.hear(key, node) for node in range(self.num_nodes)]


@contextmanager
def meeting(config: Config) -> Iterator[Meeting]:
    """Wait for all nodes. Raises `ApartError`, and `OSError` if an address cannot be used."""
    nodes, pipeline = config.nodes, config.pipeline
    facts, num_stages = facts_of(config), pipeline.pipeline_parallel_size
    timeout_s = pipeline.stage_start_timeout
    with ExitStack() as stack:
        host = None
        if nodes.node_rank == 0:
            host = stack.enter_context(_Host(config, Nodes(nodes.nnodes, num_stages, facts)))
        check = host.check if host else lambda: None
        link = stack.enter_context(
            NodeLink(
                nodes,
                nodes.endpoint(),
                config.runtime.secret,
                nodes.num_local_stages(pipeline),
                facts,
                lambda: None,
            )
        )
        try:
            epoch = link.next_epoch(check, timeout_s)
        except (RefusedError, TimeoutError) as error:
            raise ApartError(str(error)) from error
        store = rendezvous.nodes_store(
            nodes, timedelta(seconds=timeout_s), rendezvous.listen(nodes) if host else None
        )
        notes = PrefixStore(f"doctor-{epoch}", store)
        met = Meeting(nodes.node_rank, nodes.nnodes, notes, check)
        if host:
            host.has_met = True
        yield met
        met.tell("has ended", "")
        if host:  # it has the store
            met.hear_all("has ended")


class _Host:
    """Answers the nodes as the engine does, in a thread."""

    def __init__(self, config: Config, nodes: Nodes) -> None:
        self.has_met = False
        self._nodes = nodes
        self._refused: dict[int, tuple[float, str]] = {}
        """Since when a node has been refused, and why it was last."""
        self._heard_at: dict[int, float] = {}
        endpoint, secret = config.nodes.endpoint(), config.runtime.secret
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

    def check(self) -> None:
        """Raise `ApartError` if a node has been refused until it gave up, or has left a meeting.

        A daemon waits for its replacement; the doctor has found what it was asked for.
        """
        now = time.monotonic()
        for since, refusal in list(self._refused.values()):
            if now - since > REFUSAL_S + GIVING_UP_S:
                raise ApartError(refusal)
        for node, heard_at in list(self._heard_at.items()):
            if self.has_met and now - heard_at > GONE_S:
                raise ApartError(f"node {node} has left: it was stopped, or cannot be reached")

    def _run(self) -> None:
        while not self._is_over.wait(INTERVAL_S / 4):
            for sender, state in self._hub.drain():
                now = time.monotonic()
                order = self._nodes.take(state, now)
                if order.refusal:
                    since, _ = self._refused.get(state.node, (now, ""))
                    self._refused[state.node] = since, order.refusal
                else:
                    self._refused.pop(state.node, None)
                    self._heard_at[state.node] = now
                self._hub.send(sender, order)
