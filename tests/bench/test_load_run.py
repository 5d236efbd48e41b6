"""A run of requests, in virtual time: they start when they arrive, and all is bounded."""

import asyncio

import pytest

from bench.load_run import Bounds, LoadRun
from bench.results.record import CONNECTION, NOT_SENT, RUN_ENDED, TIMEOUT, Record
from tests.bench.world import run_in_virtual_time, whole_answer


def run(
    arrivals: list[float],
    seconds: list[float],
    *,
    request_timeout_s: float = 100.0,
    timeout_s: float = 1000.0,
    max_concurrency: int | None = None,
    interrupt_at: float | None = None,
) -> tuple[LoadRun, str]:
    """A run against a server that takes `seconds[i]` for request i."""

    async def main() -> tuple[LoadRun, str]:
        async def ask(index: int, record: Record) -> None:
            await asyncio.sleep(seconds[index])
            if index == 13:
                raise ConnectionResetError("bad luck")
            record.feed(200, b"".join(whole_answer("a")), loop.now())
            record.end(200, loop.now())

        virtual = asyncio.get_running_loop()
        bounds = Bounds(request_timeout_s, timeout_s, max_concurrency)
        loop = LoadRun(arrivals, ask, bounds, clock=virtual.time)
        if interrupt_at is not None:
            virtual.call_later(interrupt_at, loop.interrupt)
        return loop, await loop.run()

    return run_in_virtual_time(main())


def test_a_request_starts_at_its_arrival_whatever_the_others_do() -> None:
    loop, ending = run([0.0, 1.0, 2.5], [50.0, 0.5, 7.0])
    assert ending == "finished"
    assert [r.sent_s for r in loop.records] == pytest.approx([0.0, 1.0, 2.5])
    assert [r.ended_s for r in loop.records] == pytest.approx([50.0, 1.5, 9.5])
    assert loop.duration_s == pytest.approx(50.0)


def test_no_more_requests_are_open_than_the_limit_and_the_rest_follow_in_order() -> None:
    loop, _ = run([0.0, 0.0, 0.0, 1.0], [4.0, 2.0, 3.0, 1.0], max_concurrency=2)
    assert [r.sent_s for r in loop.records] == pytest.approx([0.0, 0.0, 2.0, 4.0])
    assert all(record.error is None for record in loop.records)


def test_a_request_that_takes_too_long_is_an_error_and_the_others_are_not() -> None:
    loop, ending = run([0.0, 0.0], [60.0, 1.0], request_timeout_s=5.0)
    assert ending == "finished"
    assert [r.error for r in loop.records] == ["no whole answer within 5 s", None]
    assert loop.records[0].error_kind == TIMEOUT
    assert loop.duration_s == pytest.approx(5.0)


def test_the_wait_for_a_slot_does_not_count_against_the_time_of_a_request() -> None:
    loop, _ = run([0.0, 0.0], [4.0, 4.0], request_timeout_s=5.0, max_concurrency=1)
    assert [r.error for r in loop.records] == [None, None]


def test_the_whole_run_ends_in_time_and_says_of_each_request_what_became_of_it() -> None:
    loop, ending = run([0.0, 0.0, 20.0], [1.0, 60.0, 1.0], timeout_s=10.0)
    assert ending == "timed out"
    assert loop.duration_s == pytest.approx(10.0)
    assert [r.error for r in loop.records] == [None, "open when the run timed out", "not sent"]
    assert [r.error_kind for r in loop.records] == [None, RUN_ENDED, NOT_SENT]


def test_an_interrupted_run_keeps_what_has_arrived() -> None:
    loop, ending = run([0.0, 0.0, 20.0], [1.0, 60.0, 1.0], interrupt_at=3.0)
    assert ending == "interrupted"
    assert loop.duration_s == pytest.approx(3.0)
    errors = [None, "open when the run was interrupted", "not sent"]
    assert [r.error for r in loop.records] == errors


def test_a_broken_connection_is_only_the_error_of_its_own_request() -> None:
    loop, ending = run([0.0] * 15, [1.0] * 15)
    assert ending == "finished"
    assert [r.error for r in loop.records] == [None] * 13 + ["bad luck", None]
    assert loop.records[13].error_kind == CONNECTION


def test_a_connection_that_times_out_is_not_the_limit_of_the_request() -> None:
    async def main() -> Record:
        async def ask(_: int, __: Record) -> None:
            raise TimeoutError("no route")

        run = LoadRun([0.0], ask, Bounds(1.0, 1.0))
        await run.run()
        return run.records[0]

    record = run_in_virtual_time(main())
    assert (record.error_kind, record.error) == (CONNECTION, "no route")


def test_a_bug_in_the_client_is_not_taken_for_an_error_of_the_daemon() -> None:
    async def main() -> str:
        async def ask(index: int, _: Record) -> None:
            raise ZeroDivisionError(index)

        return await LoadRun([0.0], ask, Bounds(1.0, 1.0)).run()

    with pytest.raises(ExceptionGroup) as raised:
        run_in_virtual_time(main())
    assert raised.group_contains(ZeroDivisionError)


def test_every_end_is_reported_once() -> None:
    ended: list[Record] = []

    async def main() -> LoadRun:
        async def ask(index: int, record: Record) -> None:
            await asyncio.sleep(3.0 - index)
            record.end(200, loop.now())

        loop = LoadRun([0.0] * 3, ask, Bounds(1.5, 100.0), ended.append)
        await loop.run()
        return loop

    loop = run_in_virtual_time(main())
    first, second, third = loop.records
    assert [*map(id, ended)] == [id(third), id(first), id(second)]
