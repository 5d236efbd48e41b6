"""Output coalescing: arrivals between two flushes are delivered together, urgent ones at once."""

import asyncio
from collections.abc import Callable

import pytest

from server.requests.output_coalescing import (
    MANY_TOKENS,
    PAUSE_PER_LISTENER_S,
    Inbox,
    OutputCoalescer,
)

MANY = 100
PAUSE_S = MANY * PAUSE_PER_LISTENER_S


class World:
    """Listeners that record deliveries, and a clock that the test sets."""

    def __init__(self, num_listeners: int, longest_pause_s: float = 1.0) -> None:
        self.now = 0.0
        self.coalescer = OutputCoalescer(longest_pause_s, lambda: self.now)
        self.delivered: dict[int, list[list[str]]] = {}
        self.inboxes = [self._listening(i) for i in range(num_listeners)]

    def _listening(self, index: int) -> Inbox[str]:
        inbox = Inbox[str](self.coalescer)
        inbox.listener = lambda: self.delivered.setdefault(index, []).append(inbox.take())
        return inbox

    def burst(self, what: str, now: float) -> None:
        """An arrival for each inbox."""
        self.now = now
        for inbox in self.inboxes:
            inbox.put(what)
        self.coalescer.end_burst()


def in_loop(play: Callable[[], None]) -> None:
    async def run() -> None:
        play()

    asyncio.run(run())


def test_few_listeners_are_called_for_each_burst() -> None:
    world = World(3)
    for burst in "abc":
        world.burst(burst, 0.0)
    assert world.delivered == {i: [["a"], ["b"], ["c"]] for i in range(3)}


def test_many_listeners_are_called_after_a_pause_that_grows_with_their_number() -> None:
    world = World(MANY)

    def play() -> None:
        world.burst("a", 0.0)
        world.burst("b", PAUSE_S * 0.5)
        world.burst("c", PAUSE_S * 0.9)
        assert world.delivered[7] == [["a"]]
        world.burst("d", PAUSE_S)
        assert world.delivered[7] == [["a"], ["b", "c", "d"]]

    in_loop(play)


@pytest.mark.parametrize("longest_pause_s", [0.0, 0.004])
def test_a_pause_that_is_not_wanted_is_not_made(longest_pause_s: float) -> None:
    world = World(MANY, longest_pause_s)
    for burst in "ab":
        world.burst(burst, 0.0)
    assert world.delivered[7] == [["a"], ["b"]]


def test_a_pause_ends_though_no_other_burst_comes() -> None:
    world = World(MANY)

    async def play() -> None:
        world.burst("a", 0.0)
        world.burst("b", 0.0)
        assert world.delivered[7] == [["a"]]
        while world.delivered[7] == [["a"]]:
            await asyncio.sleep(0.001)
        assert world.delivered[7] == [["a"], ["b"]]

    asyncio.run(asyncio.wait_for(play(), 10))


def test_an_urgent_arrival_is_delivered_at_once_and_once() -> None:
    world = World(MANY)

    def play() -> None:
        world.burst("a", 0.0)
        world.inboxes[7].put("b")
        world.inboxes[7].put("c")
        world.inboxes[7].flush_soon()
        world.inboxes[8].put("b")
        world.coalescer.end_burst()
        assert (world.delivered[7], world.delivered[8]) == ([["a"], ["b", "c"]], [["a"]])
        world.burst("d", 1.0)
        assert (world.delivered[7][2:], world.delivered[8][1:]) == ([["d"]], [["b", "d"]])

    in_loop(play)


def test_a_waiting_task_is_woken_by_any_arrival_or_only_by_ends() -> None:
    async def play() -> None:
        inbox, patient = Inbox[str](OutputCoalescer(0.0)), Inbox[str](OutputCoalescer(0.0))
        patient.only_ends = True
        for each in (inbox, patient):
            each.put("a")
        await asyncio.wait_for(inbox.wait(), 10)
        waiting = asyncio.create_task(patient.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        patient.flush_soon()
        await asyncio.wait_for(waiting, 10)
        assert patient.take() == ["a"]

    asyncio.run(play())


def test_a_task_that_waits_for_ends_is_woken_by_many_tokens_and_by_as_many_more() -> None:
    async def play() -> None:
        inbox = Inbox[str](OutputCoalescer(0.0))
        inbox.only_ends = True
        for text in "ab":
            inbox.put(text)
            for _ in range(MANY_TOKENS - 1):
                inbox.count_token()
            waiting = asyncio.create_task(inbox.wait())
            await asyncio.sleep(0)
            assert not waiting.done()
            inbox.count_token()
            await asyncio.wait_for(waiting, 10)
            assert inbox.take() == [text]

    asyncio.run(play())
