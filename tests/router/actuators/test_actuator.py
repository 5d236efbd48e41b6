"""What actuators share: the limit of starts, waiting with a bound, and their membership."""

import asyncio

import pytest

from configs.schema.scaling import ScalingConfig
from router.actuators.actuator import GrowthLimit, Lifetime, happens
from router.actuators.fixed import FixedActuator
from router.actuators.local import LocalActuator
from router.actuators.membership import Membership
from router.actuators.registry import make_actuator
from router.actuators.webhook import WebhookActuator
from tests.router.actuators.running import Reports


class Clock:
    """A clock that stands still unless it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_starts_are_limited_in_number_and_in_time() -> None:
    clock = Clock()
    limit = GrowthLimit(3, 10.0, clock)
    assert limit.allows(2)
    assert not limit.allows(3)
    limit.start()
    assert not limit.allows(1)
    clock.now = 9.9
    assert not limit.allows(1)
    clock.now = 10.0
    assert limit.allows(1)


def test_an_event_is_waited_for_with_a_bound() -> None:
    async def test() -> None:
        event = asyncio.Event()
        assert not await happens(event, 0.0)
        asyncio.get_running_loop().call_soon(event.set)
        assert await happens(event, 30.0)

    asyncio.run(test())


class Work:
    """Work without an end, which notes that it has been ended."""

    def __init__(self) -> None:
        self.has_ended = False

    async def do(self) -> None:
        """Go on."""
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(0)  # closing takes some time
            self.has_ended = True


def test_closing_waits_until_the_work_has_ended() -> None:
    async def test() -> None:
        work, lifetime = Work(), Lifetime()
        running = asyncio.create_task(lifetime.run(work.do()))
        await asyncio.sleep(0.01)
        await lifetime.close()
        assert work.has_ended
        await running

    asyncio.run(test())


def test_what_was_closed_before_does_nothing() -> None:
    async def test() -> None:
        lifetime = Lifetime()
        await lifetime.close()
        await lifetime.run(Work().do())

    asyncio.run(test())


def test_a_failure_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(Lifetime().run(work()))


def test_a_cancelled_caller_cancels_the_work() -> None:
    async def test() -> None:
        work, lifetime = Work(), Lifetime()
        running = asyncio.create_task(lifetime.run(work.do()))
        await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert work.has_ended
        await lifetime.close()

    asyncio.run(test())


def test_a_membership_reports_only_what_changes() -> None:
    reports, members = Reports(), Membership(1)
    members.begin(reports.joined, reports.gone)
    members.update(["a", "b"])
    members.update(["b", "c"])
    members.join("c")
    members.leave("a")
    members.rejoin("a")
    assert reports.history == [("joined", "a"), ("joined", "b"), ("gone", "a"), ("joined", "c")]
    members.rejoin("b")
    assert reports.history[-1] == ("joined", "b")
    assert members.names == {"b", "c"}


def test_the_first_that_is_there_is_picked_unless_none_is_spare() -> None:
    members = Membership(2)
    members.update(["a", "b", "c"])
    assert members.pick(["x", "b", "a"]) == "b"
    assert members.pick(["x"]) is None
    assert members.pick([]) is None
    members.leave("c")
    assert members.pick(["b", "a"]) is None


def test_all_that_wait_for_an_instance_to_go_see_it() -> None:
    async def test() -> None:
        members = Membership(1)
        members.update(["a", "b"])
        waits = [asyncio.create_task(members.wait_gone("a", 30.0)) for _ in range(3)]
        late = asyncio.create_task(members.wait_gone("b", 0.05))
        await asyncio.sleep(0)
        members.leave("a")
        assert await asyncio.gather(*waits) == [True] * 3
        assert not await late

    asyncio.run(test())


def test_the_settings_name_the_actuator() -> None:
    assert isinstance(make_actuator(ScalingConfig(), ["http://a"]), FixedActuator)
    assert isinstance(make_actuator(ScalingConfig(actuator="local")), LocalActuator)
    webhook = ScalingConfig(actuator="webhook", webhook_url="http://a")
    assert isinstance(make_actuator(webhook), WebhookActuator)
