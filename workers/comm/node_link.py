"""The node link: tells the engine the state of this node, and does what the engine answers.

It is a thread of torchrun's process. The engine brings the nodes together (`engine.nodes`).
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

from configs.schema.nodes import NodesConfig
from wire.messages import NodeOrder, NodeState, RankExit, ToNode
from wire.sockets import Spoke

INTERVAL_S = 0.25
# An engine that is restarted answers again after a second or two. After this time without an answer
# the first node counts as gone, and the stages of this node end: nobody can use them.
ENGINE_SILENCE_S = 10.0
# The place of a node that was killed is free again after a moment.
REFUSAL_S = 5.0
# The first message about what a node waits for, and further ones.
FIRST_LOG_S, LOG_INTERVAL_S = 1.0, 10.0

log = logging.getLogger("tdpipe")


class RefusedError(Exception):
    """The engine does not let this node take part; the message is one line for the user."""


class NodeLink:
    """One node's connection to the engine, for the length of a `with` block.

    `facts` are compared with those of the first node. `end_stages` ends the stages of this node at
    once; it is called several times if they do not end, and maybe when there are none.
    `first_exit` returns how the newest of them ended.
    """

    def __init__(
        self,
        config: NodesConfig,
        endpoint: str,
        secret: str | None,
        num_stages: int,
        facts: Mapping[str, str],
        end_stages: Callable[[], None],
        first_exit: Callable[[], RankExit | None] = lambda: None,
    ) -> None:
        self._config, self._endpoint, self._secret = config, endpoint, secret
        self._num_stages = num_stages
        self._facts, self._end_stages, self._first_exit = dict(facts), end_stages, first_exit
        self._ended: RankExit | None = None  # of the newest stages
        self._instance, self._host = _unique_number(), socket.gethostname()
        self._changed = threading.Condition()
        self._attempt = self._epoch = 0
        self._order = NodeOrder()
        self._heard_at = self._agreed_at = time.monotonic()
        self._is_known = False  # whether the first node was ever heard
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def next_epoch(self, beat: Callable[[], None], timeout_s: float) -> int:
        """Wait until all nodes wait, and return the epoch of the group that begins.

        `beat` is called several times a second. Raises `RefusedError`, and `TimeoutError` with what
        was missing.
        """
        began_at = time.monotonic()
        next_log_at = began_at + FIRST_LOG_S
        ended = self._first_exit()
        with self._changed:
            self._attempt, self._ended = _unique_number(), ended
            self._agreed_at = began_at
            while self._order.attempt != self._attempt:
                now = time.monotonic()
                missing = self._missing(now)
                if now - self._agreed_at > REFUSAL_S and self._order.refusal:
                    raise RefusedError(self._order.refusal)
                if now - began_at > timeout_s:
                    raise TimeoutError(f"after {timeout_s:g} s (stage_start_timeout): {missing}")
                if now >= next_log_at:
                    log.info("node %d waits: %s", self._config.node_rank, missing)
                    next_log_at = now + LOG_INTERVAL_S
                beat()
                self._changed.wait(INTERVAL_S)
            self._attempt, self._epoch, self._ended = 0, self._order.epoch, None
            return self._epoch

    def silent_s(self) -> float:
        """For how long the first node has been silent; 0 before it was heard for the first time."""
        return time.monotonic() - self._heard_at if self._is_known else 0.0

    def _missing(self, now: float) -> str:
        if now - self._heard_at > 4 * INTERVAL_S:
            return (
                f"the first node does not answer at {self._endpoint}: it is not there, "
                "cannot be reached, or has another cluster_secret"
            )
        return self._order.refusal or self._order.missing or "the group begins"

    def _run(self) -> None:
        name = f"node-{self._config.node_rank}-{self._instance}"
        with Spoke[ToNode](self._endpoint, name, ToNode, self._secret, queues_ahead=False) as spoke:
            while not self._is_over.is_set():
                spoke.send(self._state())
                ends_at = time.monotonic() + INTERVAL_S
                while (left_s := ends_at - time.monotonic()) > 0 and spoke.wait(left_s):
                    for order in spoke.drain():
                        self._take(order)
                is_silent = time.monotonic() - self._heard_at > ENGINE_SILENCE_S
                if is_silent and self._epoch and not self._attempt:
                    self._end_stages()

    def _state(self) -> NodeState:
        with self._changed:
            return NodeState(
                self._config.node_rank,
                self._instance,
                self._host,
                self._num_stages,
                self._attempt,
                self._epoch,
                self._facts if self._attempt else {},
                self._ended,
            )

    def _take(self, order: NodeOrder) -> None:
        with self._changed:
            self._order, self._heard_at, self._is_known = order, time.monotonic(), True
            if not order.refusal:
                self._agreed_at = self._heard_at
            has_ended = not self._attempt and 0 < self._epoch <= order.ended_epoch
            self._changed.notify_all()
        if has_ended:
            self._end_stages()


def _unique_number() -> int:
    return int.from_bytes(os.urandom(6), "little") | 1
