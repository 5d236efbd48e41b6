"""Fixed instances: all that are named, once, and no others."""

import asyncio

import pytest

from router.actuators.actuator import ActuatorError
from router.actuators.fixed import FixedActuator
from tests.router.actuators.running import running


def test_instances_are_those_that_are_named() -> None:
    async def test() -> None:
        async with running(FixedActuator(["http://b", "http://a", "http://b"])) as reports:
            assert reports.history == [("joined", "http://b"), ("joined", "http://a")]

    asyncio.run(test())


def test_no_instance_is_started_and_the_need_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        actuator = FixedActuator(["http://a"])
        async with running(actuator) as reports:
            for _ in range(3):
                await actuator.grow()
            assert actuator.num_refused == 3
            assert len(reports.history) == 1
        assert caplog.messages == [
            "more instances are needed than the 1 in instances; actuator fixed starts none"
        ]

    asyncio.run(test())


def test_no_instance_is_picked_or_stopped() -> None:
    async def test() -> None:
        actuator = FixedActuator(["http://a", "http://b"])
        async with running(actuator) as reports:
            assert actuator.pick(reports.present) is None
            with pytest.raises(ActuatorError, match="http://a is not removed"):
                await actuator.remove("http://a")
            assert reports.history[2:] == [("joined", "http://a")]

    asyncio.run(test())
