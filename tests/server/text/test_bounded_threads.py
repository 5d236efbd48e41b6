"""Calls in threads: time limits and a queue of limited length."""

import asyncio
import threading

import pytest

from server.http.errors import ApiError
from server.text.bounded_threads import BoundedThreads


def test_a_call_returns_or_raises() -> None:
    async def run() -> None:
        threads = BoundedThreads(1, "tests", 1, "tests")
        assert await threads.run(lambda: threading.current_thread().name, 10) == "tests"
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 / 0, 10)
        assert await threads.run(lambda: 7, 10) == 7

    asyncio.run(run())


def test_a_call_that_does_not_return_keeps_its_slot_and_waits_are_limited() -> None:
    let = threading.Event()

    async def run() -> None:
        threads = BoundedThreads(1, "tests", 1, "tests")
        with pytest.raises(TimeoutError):
            await threads.run(let.wait, 0.01)
        with pytest.raises(ApiError, match="Too many tests") as refused:
            await threads.run(lambda: 7, 0.01)
        assert refused.value.status == 429, "it never began: it is not to blame"
        let.set()
        assert await threads.run(lambda: 7, 10) == 7

    asyncio.run(run())


def test_the_number_of_waiting_calls_is_limited_except_for_patient_ones() -> None:
    let, done = threading.Event(), []

    async def run() -> None:
        threads = BoundedThreads(1, "tests", 1, "tests")

        async def do(name: str, *, patient: bool = False) -> None:
            await threads.run(let.wait, patient=patient)
            done.append(name)

        async with asyncio.TaskGroup() as group:
            for name, patient in (("first", False), ("a", True), ("b", True), ("second", False)):
                group.create_task(do(name, patient=patient))
            await asyncio.sleep(0)  # all of them have begun
            with pytest.raises(ApiError, match="Too many tests"):
                await threads.run(let.wait)
            let.set()

    asyncio.run(run())
    assert done == ["first", "a", "second", "b"], "only one of the patient is before the others"


def test_a_call_may_outlive_its_loop() -> None:
    let = threading.Event()
    threads: list[threading.Thread] = []

    def outlive() -> None:
        threads.append(threading.current_thread())
        let.wait()

    async def run() -> None:
        with pytest.raises(TimeoutError):
            await BoundedThreads(1, "tests", 1, "tests").run(outlive, 0.01)

    asyncio.run(run())
    let.set()
    threads[0].join(10)
    assert not threads[0].is_alive()


def test_a_thread_that_cannot_be_started_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def run() -> None:
        threads = BoundedThreads(1, "tests", 1, "tests")
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start"):
                await threads.run(lambda: 7)
        assert await threads.run(lambda: 7, 10) == 7

    asyncio.run(run())
