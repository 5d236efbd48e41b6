"""Attendance: which nodes were refused or have left, as the first node hears it; without a clock.

A daemon waits for the replacement of such a node. The doctor has found what it was asked for.
"""

from dataclasses import dataclass

from wire.messages import NodeState
from workers.comm.node_link import REFUSAL_S

GIVING_UP_S = 2.0
"""A node gives up after `REFUSAL_S` of refusals, and ends within this time."""
GONE_S = 5.0
"""Of silence; a node tells its state four times a second."""


@dataclass(slots=True)
class _Refusal:
    first_at: float
    last_at: float
    reason: str


class Attendance:
    """Hears all nodes; after `begin` none of them may leave or be replaced."""

    def __init__(self) -> None:
        self._refused: dict[int, _Refusal] = {}
        self._heard: dict[int, tuple[int, float]] = {}  # the process of a node, and when
        self._left: set[int] = set()
        self._has_begun = False

    def begin(self) -> None:
        """All nodes have met."""
        self._has_begun = True

    def take(self, state: NodeState, refusal: str, now: float) -> None:
        """Note the state of a node, and why it was refused, if it was."""
        known = self._heard.get(state.node)
        if self._has_begun:
            if known is None:  # a stray one, which has no part in the checks
                return
            if known[0] != state.instance:
                self._left.add(state.node)
            else:
                self._heard[state.node] = state.instance, now
        elif not refusal:
            self._refused.pop(state.node, None)
            self._heard[state.node] = state.instance, now
        else:
            before = self._refused.get(state.node)
            is_new = before is None or now - before.last_at > GIVING_UP_S
            first_at = now if before is None or is_new else before.first_at
            self._refused[state.node] = _Refusal(first_at, now, refusal)

    def problem(self, now: float) -> str:
        """Why the nodes cannot go on, or nothing."""
        if not self._has_begun:
            for refusal in list(self._refused.values()):
                has_given_up = refusal.last_at - refusal.first_at > REFUSAL_S - 1
                if has_given_up and now - refusal.first_at > REFUSAL_S + GIVING_UP_S:
                    return refusal.reason
            return ""
        silent = {node for node, (_, at) in list(self._heard.items()) if now - at > GONE_S}
        left = sorted(self._left | silent)
        return f"node {left[0]} has left: it was stopped, or cannot be reached" if left else ""
