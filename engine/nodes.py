"""Nodes: brings the torchrun processes of several hosts together for each group of stages.

torchrun's own rendezvous over several hosts (c10d) pickles over an open port, and a node that came
back 3 s after its loss did not join again. Here every node tells its state over the engine's
encrypted socket, four times a second, and is answered what to do. Nothing else is remembered on
either side: a message that is lost is repeated, in any order of starts and restarts.

A group has all nodes. If one of them waits for a new group, the old one is over.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from wire.messages import NodeOrder, NodeState, RankExit

# A node that was silent for longer counts as gone: its place can be taken, and no group starts.
SILENCE_S = 1.5
# Time in which the node whose stage has ended first is heard: two of its messages.
CAUSE_S = 0.5


@dataclass(slots=True)
class _Node:
    state: NodeState
    heard_at: float
    waits_since: float  # with this attempt


class Broken(NamedTuple):
    """An epoch whose stages have ended on a node: the first end, or a reason if it is unknown."""

    epoch: int
    cause: RankExit | None = None
    reason: str = ""


class Nodes:
    """The states of all nodes, and the newest group; without I/O and clock.

    `facts` are those of the engine's own node.
    """

    def __init__(self, num_nodes: int, num_stages: int, facts: Mapping[str, str]) -> None:
        self._num_nodes, self._num_stages, self._facts = num_nodes, num_stages, facts
        self._known: dict[int, _Node] = {}
        self._newest_epoch = 0
        self._ended_epoch = 0
        self._started: dict[int, int] = {}  # the attempts of the newest group, by node

    def take(self, state: NodeState, now: float) -> NodeOrder:
        """Record the state of a node, and return what it must do; `now` in seconds."""
        refusal = self._refusal(state, now)
        if refusal:
            return NodeOrder(ended_epoch=self._ended_epoch, refusal=refusal)
        known = self._known.get(state.node)
        is_same = known is not None and known.state.attempt == state.attempt
        self._known[state.node] = _Node(state, now, known.waits_since if known and is_same else now)
        self._newest_epoch = max(self._newest_epoch, state.epoch)
        missing = self.missing(now)
        if self._is_waiting(state) and not missing:
            self._newest_epoch += 1
            self._started = {node: known.state.attempt for node, known in self._known.items()}
        if state.attempt and not self._is_waiting(state):
            return NodeOrder(state.attempt, self._newest_epoch, self._ended_epoch)
        return NodeOrder(ended_epoch=self._ended_epoch, missing=missing)

    def end(self, epoch: int) -> None:
        """The stages of this epoch are lost: those on every node must end."""
        self._ended_epoch = max(self._ended_epoch, epoch)
        self._newest_epoch = max(self._newest_epoch, epoch)

    def find_broken(self, now: float) -> Broken | None:
        """The epoch whose stages have ended on one node but not on all, and why; or None.

        A stage ends with code 1 because of a neighbour; the node of that one is heard a moment
        later.
        """
        states = [known.state for known in self._known.values()]
        for state in states:
            cause = state.first_exit
            if cause is not None and cause.status != 1 and state.epoch > self._ended_epoch:
                return Broken(state.epoch, cause)
        running = max((state.epoch for state in states if not state.attempt), default=0)
        waiting = [known for known in self._known.values() if self._is_waiting(known.state)]
        if running <= self._ended_epoch or not waiting:
            return None
        if now - min(known.waits_since for known in waiting) < CAUSE_S:
            return None
        names = ", ".join(f"{known.state.node} ({known.state.host})" for known in waiting)
        return Broken(running, reason=f"the stages on node {names} have ended")

    def missing(self, now: float) -> str:
        """What a new group waits for; empty if every node waits for it."""
        return "; ".join(self._reasons(now))

    def _reasons(self, now: float) -> Iterator[str]:
        for node in range(self._num_nodes):
            known = self._known.get(node)
            if known is None or now - known.heard_at > SILENCE_S:
                yield f"node {node} has not connected" if known is None else f"node {node} is gone"
            elif not self._is_waiting(known.state):
                yield f"the stages on node {node} have not ended"
        num_stages = sum(known.state.num_stages for known in self._known.values())
        if len(self._known) == self._num_nodes and num_stages != self._num_stages:
            yield (
                f"the nodes have {num_stages} stages in sum, not {self._num_stages} "
                "(pipeline_parallel_size, nproc_per_node)"
            )

    def _is_waiting(self, state: NodeState) -> bool:
        """Whether a node waits for a group that has not started."""
        return state.attempt != 0 and self._started.get(state.node) != state.attempt

    def _refusal(self, state: NodeState, now: float) -> str:
        """Why a node cannot take part, or nothing."""
        if state.node >= self._num_nodes:
            return f"node_rank {state.node} is not one of the first node's {self._num_nodes} nodes"
        known = self._known.get(state.node)
        if (
            known is not None
            and known.state.instance != state.instance
            and now - known.heard_at <= SILENCE_S
        ):
            return f"node_rank {state.node} is taken by {known.state.host}"
        if not state.attempt:
            return ""
        differing = [
            f"{name} is {state.facts.get(name, 'unknown')}, on the first node {value}"
            for name, value in self._facts.items()
            if state.facts.get(name) != value
        ]
        return (
            f"node {state.node} ({state.host}) differs: {'; '.join(differing)}" if differing else ""
        )
