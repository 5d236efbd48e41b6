"""The meeting: the nodes find each other as for a group of stages, before any model is loaded."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta

from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from configs.config import Config
from daemon.host.node_facts import facts_of
from engine.nodes import Nodes
from wire.messages import NodeState
from wire.sockets import Hub
from workers.comm import rendezvous
from workers.comm.node_link import INTERVAL_S, REFUSAL_S, NodeLink, RefusedError

GIVING_UP_S = 2.0
"""A node that has been refused for `REFUSAL_S` needs less to print why."""


class ApartError(Exception):
    """The nodes did not meet; the message says what was missing."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """All nodes, and a store in which they leave each other notes."""

    node: int
    num_nodes: int
    store: Store

    def tell(self, key: str, value: str) -> None:
        """Leave a note of this node."""
        self.store.set(f"{key}-{self.node}", value)

    def hear(self, key: str, node: int) -> str:
        """Another node's note; waits for it. Raises `RuntimeError` if it does not come in time."""
        return str(self.store.get(f"{key}-{node}").decode())

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
        met = Meeting(nodes.node_rank, nodes.nnodes, PrefixStore(f"doctor-{epoch}", store))
        yield met
        met.tell("has ended", "")
        met.hear_all("has ended")  # the first node has the store


class _Host:
    """Answers the nodes as the engine does, in a thread."""

    def __init__(self, config: Config, nodes: Nodes) -> None:
        self._nodes = nodes
        self._refused: dict[int, tuple[float, str]] = {}
        """Since when a node has been refused, and why it was last."""
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
        """Raise `ApartError` if a node has been refused for so long that it has given up.

        A daemon waits for its replacement; the doctor has found what it was asked for.
        """
        longest_s = REFUSAL_S + GIVING_UP_S
        for since, refusal in list(self._refused.values()):
            if time.monotonic() - since > longest_s:
                raise ApartError(refusal)

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
                self._hub.send(sender, order)
