"""Scaling: instances come and go as the actuator says, and leave when they have drained."""

import asyncio
from collections.abc import Sequence

import pytest

from router import process
from router.actuators.actuator import ActuatorError, Report
from router.decisions.messages import Grow, Shrink
from tests.router.test_front import answers
from tests.router.world import (
    DONE,
    END,
    HEAD,
    Asked,
    FakeDaemon,
    World,
    chunk,
    completion,
    event,
    run_async,
    running,
)


class FakeActuator:
    """Reports what the test says, and notes what it is asked for."""

    def __init__(self) -> None:
        self.on_joined: Report = print
        self.on_gone: Report = print
        self.num_grown = 0
        self.removed: list[str] = []
        self.may_remove: list[str] = []
        self.is_closed = False

    async def run(self, on_joined: Report, on_gone: Report) -> None:
        """See `Actuator`."""
        self.on_joined, self.on_gone = on_joined, on_gone
        await asyncio.Event().wait()

    async def grow(self) -> None:
        """See `Actuator`."""
        self.num_grown += 1
        raise ActuatorError("no room for another instance")

    async def remove(self, name: str) -> None:
        """See `Actuator`."""
        self.removed.append(name)

    def pick(self, names: Sequence[str]) -> str | None:
        """See `Actuator`."""
        return next((name for name in names if name in self.may_remove), None)

    async def close(self) -> None:
        """See `Actuator`."""
        self.is_closed = True


@pytest.fixture
def actuator(monkeypatch: pytest.MonkeyPatch) -> FakeActuator:
    """The actuator of all routers of the test."""
    actuator = FakeActuator()
    monkeypatch.setattr(process, "make_actuator", lambda *_: actuator)
    return actuator


def decide(world: World, decision: Grow | Shrink) -> None:
    """Let the core of the only fleet decide this."""
    fleets = world.router.fleets
    fleets._apply(fleets._fleets[0], decision)


def test_an_instance_that_joins_serves_and_one_that_is_gone_is_forgotten(
    actuator: FakeActuator,
) -> None:
    async def test() -> None:
        async with running(FakeDaemon(answers), wait=False) as world:
            url = world.daemons[0].url
            assert (await world.ask("/ready")).status == 503
            for _ in range(2):
                actuator.on_joined(url)
                await world.until(world.is_up)
                assert (await world.ask("/v1/completions", completion())).status == 200
                page = (await world.ask("/metrics")).body.decode()
                assert f'instance_up{{instance="{url}"}}' in page
                for counter in ("instance_losses_total", "retries_total"):
                    assert f'tdpipe_router_{counter}{{instance="{url}"}}' in page
                actuator.on_gone(url)
                assert (await world.ask("/instances")).json["instances"] == []
                assert f'instance_up{{instance="{url}"}}' not in str(
                    (await world.ask("/metrics")).body.decode()
                )
                assert (await world.ask("/v1/completions", completion())).status == 503
        assert actuator.is_closed

    run_async(test())


def test_an_instance_that_leaves_is_stopped_when_it_has_drained(actuator: FakeActuator) -> None:
    go_on = asyncio.Event()

    async def slow(asked: Asked) -> None:
        await asked.write(HEAD, chunk(event("a", 1)))
        await go_on.wait()
        await asked.write(chunk(DONE), END)

    async def test() -> None:
        async with running(FakeDaemon(slow), FakeDaemon(answers), wait=False) as world:
            first, second = (daemon.url for daemon in world.daemons)
            actuator.on_joined(first)
            await world.until(world.is_up)
            reader, writer = await world.connect("/v1/completions", completion(stream=True))
            head = await reader.readuntil(b'"a"')
            actuator.on_joined(second)
            await world.until(lambda: world.is_up(1))
            actuator.may_remove = [first]
            decide(world, Shrink((second, first)))
            for _ in range(3):  # it gets no new requests
                assert (await world.ask("/v1/completions", completion())).status == 200
            assert len(world.daemons[1].asked) == 3
            assert actuator.removed == []
            go_on.set()
            assert (head + await reader.read()).endswith(chunk(DONE) + END)
            writer.close()
            await world.until(lambda: actuator.removed)
            assert actuator.removed == [first]
            assert set(world.router.fleets.links) == {second}

    run_async(test())


def test_what_the_platform_cannot_remove_stays(actuator: FakeActuator) -> None:
    async def test() -> None:
        async with running(FakeDaemon(answers), wait=False) as world:
            actuator.on_joined(world.daemons[0].url)
            await world.until(world.is_up)
            decide(world, Shrink((world.daemons[0].url,)))
            await world.until(world.is_up)
            assert (await world.ask("/v1/completions", completion())).status == 200
            assert not actuator.removed

    run_async(test())


def test_an_instance_that_cannot_be_started_is_logged(
    actuator: FakeActuator, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with running(FakeDaemon(answers), wait=False) as world:
            actuator.on_joined(world.daemons[0].url)
            await world.until(world.is_up)
            decide(world, Grow())
            await world.until(lambda: actuator.num_grown)
            assert (await world.ask("/v1/completions", completion())).status == 200

    run_async(test())
    assert "no room for another instance" in caplog.text


def test_an_instance_that_comes_back_while_its_old_requests_end_is_not_stopped(
    actuator: FakeActuator,
) -> None:
    async def hangs(asked: Asked) -> None:
        await asked.write(HEAD, chunk(event("a", 1)))
        await asked.left()

    async def test() -> None:
        async with running(FakeDaemon(hangs), wait=False, max_attempts=1) as world:
            url = world.daemons[0].url
            actuator.on_joined(url)
            await world.until(world.is_up)
            reader, writer = await world.connect("/v1/completions", completion(stream=True))
            await reader.readuntil(b'"a"')
            actuator.on_gone(url)
            actuator.on_joined(url)
            assert b"instance_lost" in await reader.read()
            writer.close()
            await world.until(world.is_up)
            assert actuator.removed == []

    run_async(test())
