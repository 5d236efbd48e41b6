"""Macro instances: how instances are grouped, and EcoServe's mitosis of the groups.

A macro instance has N_l to N_u members (`macro_lower`, `macro_upper`). It grows to N_u; with the
next instance, a new macro instance of N_l members is split off. Instances that come later fill the
old one up to N_u, and then the new one. It shrinks from the smallest one down to N_l members, and
then from a full one; two that have N_u members together merge (arXiv 2504.18154, section 3.5;
docs/papers.md). Each instance is in exactly one macro instance, whatever joins and leaves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from router.decisions.messages import Handler


@dataclass(slots=True)
class MacroInstance:
    """A group of instances; requests are sent to them in turn, the member at `last` first."""

    number: int
    members: list[Handler] = field(default_factory=list)
    last: int = 0

    def in_turn(self) -> Iterator[Handler]:
        """The members, beginning with the one that got the last request."""
        for i in range(len(self.members)):
            yield self.members[(self.last + i) % len(self.members)]

    def use(self, name: str) -> None:
        """Begin with this member from now on."""
        self.last = next(i for i, h in enumerate(self.members) if h.name == name)

    def take(self, count: int) -> list[Handler]:
        """Give up `count` members, the furthest ones in turn: they serve on, elsewhere."""
        self.members = list(self.in_turn())
        self.last, taken = 0, self.members[len(self.members) - count :]
        del self.members[len(self.members) - count :]
        return taken


class MacroInstances:
    """All macro instances of a router, by the order in which they were made."""

    def __init__(self, lower: int, upper: int) -> None:
        self._lower, self._upper = lower, upper
        self._next_number = 0
        self._all: list[MacroInstance] = []

    def __iter__(self) -> Iterator[MacroInstance]:
        return iter(self._all)

    def __len__(self) -> int:
        """The number of instances in all of them."""
        return sum(len(macro.members) for macro in self._all)

    def find(self, name: str) -> MacroInstance | None:
        """The macro instance that has this instance, or None."""
        for macro in self._all:
            if any(handler.name == name for handler in macro.members):
                return macro
        return None

    def add(self, handler: Handler) -> None:
        """Add an instance to the first macro instance that is not full; otherwise split one."""
        for macro in self._all:
            if len(macro.members) < self._upper:
                macro.members.append(handler)
                return
        if not self._all:
            self._new([handler])
            return
        old = self._all[-1]
        old.members.append(handler)
        self._new(old.take(min(self._lower, len(old.members) - 1)))

    def remove(self, name: str) -> None:
        """Remove an instance; merge macro instances that have become small enough."""
        macro = self.find(name)
        if macro is None:
            return
        gone = next(i for i, handler in enumerate(macro.members) if handler.name == name)
        del macro.members[gone]
        macro.last = (macro.last - (gone < macro.last)) % max(1, len(macro.members))
        if not macro.members:
            self._all.remove(macro)
        self._merge()

    def to_shrink(self) -> MacroInstance | None:
        """The macro instance that gives up a member: the smallest above N_l, or else a full one."""
        above = [macro for macro in self._all if len(macro.members) > self._lower]
        if above:
            return min(above, key=lambda macro: len(macro.members))
        return max(self._all, key=lambda macro: len(macro.members), default=None)

    def _new(self, members: list[Handler]) -> None:
        self._all.append(MacroInstance(self._next_number, members))
        self._next_number += 1

    def _merge(self) -> None:
        by_size = sorted(self._all, key=lambda macro: (len(macro.members), macro.number))
        while len(by_size) > 1 and len(by_size[0].members + by_size[1].members) <= self._upper:
            small, other = by_size[0], by_size[1]
            older, newer = sorted((small, other), key=lambda macro: macro.number)
            older.members += newer.members
            self._all.remove(newer)
            by_size = sorted(self._all, key=lambda macro: (len(macro.members), macro.number))
