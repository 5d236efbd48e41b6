"""Calls in threads, given up on after a while."""

import asyncio
import threading

import pytest

from server.bounded_threads import BoundedThreads


def test_a_call_returns_or_raises() -> None:
    async def run() -> None:
        threads = BoundedThreads(1, "test")
        assert await threads.run(lambda: threading.current_thread().name, 10) == "test"
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0, 10)
        assert await threads.run(lambda: 7, 10) == 7

    asyncio.run(run())


def test_a_call_that_does_not_return_keeps_its_place_and_nobody_waits_for_ever() -> None:
    let = threading.Event()

    async def run() -> None:
        threads = BoundedThreads(1, "test")
        for _ in range(2):  # the second one waits for the place
            with pytest.raises(TimeoutError):
                await threads.run(let.wait, 0.01)
        let.set()
        assert await threads.run(lambda: 7, 10) == 7

    asyncio.run(run())


def test_a_call_may_outlive_its_loop() -> None:
    let = threading.Event()
    threads: list[threading.Thread] = []

    def outlive() -> None:
        threads.append(threading.current_thread())
        let.wait()

    async def run() -> None:
        with pytest.raises(TimeoutError):
            await BoundedThreads(1, "test").run(outlive, 0.01)

    asyncio.run(run())
    let.set()
    threads[0].join(10)
    assert not threads[0].is_alive()
