"""The window: which failures are the request's own, and which are retried."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from server.batches.engine_lines import engine_window
from server.batches.storage.answers import LineAnswer
from server.batches.storage.lines import LineRequest
from server.http.errors import ApiError, failed, invalid, timed_out, too_busy, unavailable
from server.metrics import Metrics
from server.requests.engine_client import EngineClient
from server.requests.reply import Reply
from server.requests.retry import MAX_FAILURES

PATH = "/v1/completions"
METRICS = Metrics(model_name="little")


@dataclass
class FakeReply:
    """An answer, or an error instead."""

    outcome: Callable[[], bytes]
    reply_id: str = "cmpl-1"

    @property
    def rendering(self) -> "FakeReply":
        """Itself, which has the id."""
        return self

    async def whole(self) -> bytes:
        """Let other tasks run, then return the outcome."""
        await asyncio.sleep(0)
        return self.outcome()


@dataclass
class FakeEngine:
    """An endpoint and its engine client in one; returns `outcomes` in order, then answers."""

    outcomes: list[Callable[[], bytes]] = field(default_factory=list)
    is_ready: bool = True
    ready: object = field(default_factory=object)
    path: str = PATH
    asked: list[bytes] = field(default_factory=list)

    async def wait_ready(self) -> None:
        """Becomes ready as soon as it is waited for."""
        await asyncio.sleep(0)
        self.is_ready = True

    async def prepare(self, body: bytes, *, offline: bool = False) -> Reply:
        """Like an endpoint's."""
        assert offline
        self.asked.append(body)
        outcome = self.outcomes.pop(0) if self.outcomes else lambda: b'{"usage":null}'
        return cast(Reply, FakeReply(outcome))


def fails(error: Exception, then: Callable[[], Any] = lambda: None) -> Callable[[], bytes]:
    """An outcome."""

    def outcome() -> bytes:
        then()
        raise error

    return outcome


async def several(count: int) -> AsyncIterator[LineRequest]:
    """`count` requests."""
    for i in range(count):
        yield LineRequest(f"r{i}", PATH, b"%d" % i)


def run(
    engine: FakeEngine, count: int = 1, is_closed: Callable[[], bool] = lambda: False
) -> list[LineAnswer]:
    """The answers to `count` requests, two at a time."""
    answers: list[LineAnswer] = []

    async def take(answer: LineAnswer) -> None:
        answers.append(answer)

    async def work() -> None:
        window = engine_window([engine], cast(EngineClient, engine), METRICS, 2, is_closed)
        async with asyncio.timeout(10):
            await window.run(several(count), take)

    asyncio.run(work())
    return answers


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.requests.retry.RETRY_S", 0.0)
    monkeypatch.setattr("server.batches.engine_lines.POLL_INTERVAL_S", 0.0)


def test_every_request_is_answered_once() -> None:
    answers = run(engine := FakeEngine(), 50)
    assert sorted(answer.custom_id for answer in answers) == sorted(f"r{i}" for i in range(50))
    assert len(engine.asked) == 50
    assert all(answer.is_success for answer in answers)


def test_a_full_queue_is_not_the_requests_fault() -> None:
    engine = FakeEngine([fails(too_busy("full", "queue_full"))] * 20)
    (answer,) = run(engine)
    assert answer.is_success
    assert len(engine.asked) == 21


@pytest.mark.parametrize(
    "error",
    [
        invalid("no"),
        too_busy("never", "larger_than_queue", retry=False),
        ApiError(404, "gone"),
        timed_out(5.0),
        failed("a stage failed each time", retry=False),
    ],
)
def test_an_invalid_request_is_not_retried(error: ApiError) -> None:
    engine = FakeEngine([fails(error)])
    (answer,) = run(engine)
    assert not answer.is_success
    assert b'"status_code":%d' % error.status in answer.line
    assert len(engine.asked) == 1


@pytest.mark.parametrize("error", [failed("lost"), unavailable("not ready")])
def test_lost_engines_are_not_the_requests_fault(error: ApiError) -> None:
    engine = FakeEngine()

    def lose() -> None:
        engine.ready = object()

    engine.outcomes = [fails(error, lose) for _ in range(5 * MAX_FAILURES)]
    (answer,) = run(engine)
    assert answer.is_success


@pytest.mark.parametrize("error", [failed("no memory for it"), unavailable("no memory for it")])
def test_a_request_that_fails_repeatedly_in_a_running_engine_fails(error: ApiError) -> None:
    engine = FakeEngine([fails(error)] * 100)
    (answer,) = run(engine)
    assert not answer.is_success
    assert b"no memory for it" in answer.line
    assert len(engine.asked) == MAX_FAILURES


def test_a_bug_fails_only_its_own_request() -> None:
    engine = FakeEngine([fails(KeyError("a bug"))])
    first, second = sorted(run(engine, 2))
    assert b'"status_code":500' in first.line
    assert second.is_success


def test_no_request_starts_before_an_engine_is_ready_and_the_window_open() -> None:
    engine = FakeEngine(is_ready=False)
    looks = []

    def is_closed() -> bool:
        assert engine.is_ready
        assert not engine.asked
        looks.append(1)
        engine.is_ready = is_open = len(looks) == 6  # lost repeatedly before that
        return not is_open

    run(engine, 1, is_closed)
    assert len(looks) == 6


def test_an_answer_that_cannot_be_written_ends_the_run() -> None:
    async def take(_: LineAnswer) -> None:
        raise OSError("disk full")

    async def work() -> None:
        engine = FakeEngine()
        window = engine_window([engine], cast(EngineClient, engine), METRICS, 2)
        with pytest.RaisesGroup(OSError):
            await window.run(several(3), take)

    asyncio.run(work())


def test_a_cancelled_batch_releases_its_slots() -> None:
    async def stuck(_: LineAnswer) -> None:
        await asyncio.Event().wait()

    async def work() -> list[str]:
        engine, answered = FakeEngine(), list[str]()
        window = engine_window([engine], cast(EngineClient, engine), METRICS, 2)

        async def take(answer: LineAnswer) -> None:
            answered.append(answer.custom_id)

        for _ in range(5):
            first = asyncio.create_task(window.run(several(9), stuck))
            while len(engine.asked) % 2 or not engine.asked:
                await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait((first,))
        async with asyncio.timeout(10):
            await window.run(several(4), take)
        return answered

    assert sorted(asyncio.run(work())) == ["r0", "r1", "r2", "r3"]
