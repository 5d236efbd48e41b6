"""The webhook: what is asked of the service, retries, and what its list may be."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from configs.schema.scaling import ScalingConfig
from router.actuators import webhook
from router.actuators.actuator import ActuatorError
from router.actuators.webhook import WebhookActuator
from tests.router.actuators.running import Reports, running, serving, until


class Service:
    """Lists `instances`; answers POSTs with the `statuses` first, and then obeys."""

    def __init__(self, num_instances: int = 1) -> None:
        self.instances: list[Any] = [f"http://10.0.0.{i}:8000" for i in range(num_instances)]
        self.statuses: list[int] = []
        self.obeys = True
        self.answer: Response | None = None
        self.actions: list[dict[str, str]] = []
        self.keys: list[str] = []
        self.authorizations: set[str | None] = set()
        self.num_lists = 0
        self.waits: asyncio.Event | None = None

    def app(self) -> Starlette:
        """The service at /instances."""
        routes = [
            Route("/instances", self._list, methods=["GET"]),
            Route("/instances", self._act, methods=["POST"]),
        ]
        return Starlette(routes=routes)

    async def _list(self, request: Request) -> Response:
        self.num_lists += 1
        self.authorizations.add(request.headers.get("authorization"))
        return self.answer or JSONResponse(self.instances)

    async def _act(self, request: Request) -> Response:
        self.authorizations.add(request.headers.get("authorization"))
        self.keys.append(request.headers["idempotency-key"])
        action = await request.json()
        self.actions.append(action)
        if self.waits is not None:
            await self.waits.wait()
        if self.statuses:
            return Response(status_code=self.statuses.pop(0))
        if self.obeys:
            if action["action"] == "grow":
                self.instances.append(f"http://10.0.1.{len(self.instances)}:8000/")
            else:
                self.instances.remove(action["instance"])
        return Response(status_code=202)


@asynccontextmanager
async def asking(
    service: Service, **settings: Any
) -> AsyncIterator[tuple[WebhookActuator, Reports]]:
    """An actuator that asks the service, and has read its list once."""
    async with serving(service.app()) as url:
        config = ScalingConfig.of(
            **{
                "actuator": "webhook",
                "webhook_url": f"{url}/instances",
                "webhook_interval": 0.01,
                "scale_cooldown": 0,
            }
            | settings
        )
        actuator = WebhookActuator(config, back_off_s=0.001)
        async with running(actuator) as reports:
            await until(lambda: service.num_lists > 0)
            yield actuator, reports


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in an event loop of its own."""
    asyncio.run(test)


def test_what_is_listed_has_joined_and_what_is_not_any_more_is_gone() -> None:
    async def test() -> None:
        service = Service(2)
        async with asking(service) as (_, reports):
            await reports.until_number(2)
            assert reports.present == service.instances
            first = service.instances.pop(0)
            await reports.until_number(1)
            assert reports.history[-1] == ("gone", first)

    run(test())


def test_one_is_asked_for_until_it_is_listed() -> None:
    async def test() -> None:
        service = Service(1)
        service.obeys = False
        async with asking(service, webhook_token="a-token") as (actuator, reports):
            await reports.until_number(1)
            await actuator.grow()
            await actuator.grow()
            assert service.actions == [{"action": "grow"}]
            service.instances.append("http://10.0.0.9:8000/")
            await reports.until_number(2)
            assert reports.present[1] == "http://10.0.0.9:8000"
            await actuator.grow()
            assert len(service.actions) == 2
            assert service.authorizations == {"Bearer a-token"}

    run(test())


def test_one_that_does_not_come_is_asked_for_again() -> None:
    async def test() -> None:
        service = Service(1)
        service.obeys = False
        async with asking(service, instance_start_timeout=0.05) as (actuator, _):
            await actuator.grow()
            await asyncio.sleep(0.06)
            await actuator.grow()
            assert len(service.actions) == 2

    run(test())


def test_no_more_than_the_maximum_are_asked_for() -> None:
    async def test() -> None:
        service = Service(2)
        async with asking(service, max_instances=2) as (actuator, reports):
            await reports.until_number(2)
            await actuator.grow()
            assert service.actions == []

    run(test())


def test_a_removed_instance_is_gone_when_it_is_not_listed() -> None:
    async def test() -> None:
        service = Service(2)
        async with asking(service) as (actuator, reports):
            await reports.until_number(2)
            name = actuator.pick(reports.present)
            assert name is not None
            assert name == service.instances[0]
            await actuator.remove(name)
            assert service.actions == [{"action": "remove", "instance": name}]
            assert reports.history[-1] == ("gone", name)
            assert actuator.pick(reports.present) is None

    run(test())


def test_an_instance_that_stays_listed_is_reported_again() -> None:
    async def test() -> None:
        service = Service(2)
        service.obeys = False
        async with asking(service, instance_stop_timeout=0.05) as (actuator, reports):
            await reports.until_number(2)
            name = reports.present[0]
            with pytest.raises(ActuatorError, match=f"the webhook still lists {name} 0.05 s"):
                await actuator.remove(name)
            assert reports.history[2:] == [("joined", name)]

    run(test())


def test_what_may_pass_is_tried_again_with_the_same_key() -> None:
    async def test() -> None:
        service = Service(1)
        service.statuses = [500, 503, 429]
        async with asking(service) as (actuator, reports):
            await actuator.grow()
            await reports.until_number(2)
            assert len(service.keys) == 4
            assert len(set(service.keys)) == 1
            await actuator.grow()
            assert len(set(service.keys)) == 2

    run(test())


def test_tries_end() -> None:
    async def test() -> None:
        service = Service(1)
        service.statuses = [500] * 100
        async with asking(service) as (actuator, _):
            with pytest.raises(ActuatorError, match=r"^the webhook answered 500 to grow$"):
                await actuator.grow()
            assert len(service.actions) == webhook.NUM_TRIES

    run(test())


def test_a_refusal_is_not_repeated_and_the_next_need_asks_again() -> None:
    async def test() -> None:
        service = Service(1)
        service.statuses = [403, 404]
        async with asking(service) as (actuator, _):
            for status in (403, 404):
                with pytest.raises(ActuatorError, match=f"answered {status} to grow"):
                    await actuator.grow()
            assert len(service.actions) == 2

    run(test())


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (Response(status_code=500), "the webhook answered 500 to GET"),
        (Response(b'["http://\xff"]'), "the webhook's answer is no JSON list of URLs"),
        (PlainTextResponse("none"), "the webhook's answer is no JSON list of URLs"),
        (JSONResponse({"instances": []}), "the webhook's answer is no JSON list of URLs"),
        (
            JSONResponse(["10.0.0.1"]),
            "the webhook lists what is no URL of a daemon: 10.0.0.1 is not like",
        ),
        (PlainTextResponse(" " * (2 << 20)), "the webhook's list of instances exceeds 1 MiB"),
    ],
)
def test_a_list_that_is_wrong_changes_nothing_and_is_logged_once(
    answer: Response, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        service = Service(2)
        async with asking(service) as (_, reports):
            await reports.until_number(2)
            service.answer = answer
            seen = service.num_lists
            await until(lambda: service.num_lists > seen + 3)
            assert len(reports.history) == 2
            service.answer = None
            service.instances.pop()
            await reports.until_number(1)
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith(line)
        assert caplog.messages[0].endswith("; the instances last listed are kept")

    run(test())


def test_a_service_that_cannot_be_reached_is_an_error_of_one_line() -> None:
    async def test() -> None:
        config = ScalingConfig(actuator="webhook", webhook_url="http://127.0.0.1:1/")
        actuator = WebhookActuator(config, back_off_s=0.001)
        with pytest.raises(ActuatorError, match=r"^the webhook cannot be reached: .* to grow$"):
            await actuator.grow()
        await actuator.close()

    run(test())


def test_there_are_never_fewer_than_the_minimum() -> None:
    async def test() -> None:
        service = Service(0)
        async with asking(service, min_instances=2) as (_, reports):
            await reports.until_number(2)
            lost = service.instances.pop().rstrip("/")
            await until(lambda: ("gone", lost) in reports.history)
            await reports.until_number(2)

    run(test())


def test_instances_come_and_go_while_one_is_asked_for() -> None:
    async def test() -> None:
        service = Service(1)
        service.waits = asyncio.Event()
        async with asking(service, min_instances=2) as (_, reports):
            await until(lambda: service.actions == [{"action": "grow"}])
            service.instances.append("http://10.0.0.7:8000")
            await reports.until_number(2)
            del service.instances[0]
            await reports.until_number(1)
            assert len(service.actions) == 1
            service.waits.set()

    run(test())


def test_an_instance_has_one_name_however_it_is_listed_and_is_removed_by_the_services() -> None:
    async def test() -> None:
        service = Service(0)
        service.instances = ["HTTP://Host:80/v1/", "http://host"]
        async with asking(service) as (actuator, reports):
            await reports.until_number(1)
            assert reports.present == ["http://host"]
            service.instances.pop()
            listed = service.num_lists
            await until(lambda: service.num_lists > listed + 1)
            await actuator.remove("http://host")
            assert service.actions == [{"action": "remove", "instance": "HTTP://Host:80/v1/"}]

    run(test())


@pytest.mark.parametrize("url", ["http://", "http://10.0.0.5:80000", "http://a..b", "http://a b"])
def test_a_url_that_no_daemon_can_have_is_refused(url: str) -> None:
    async def test() -> None:
        service = Service(1)
        async with asking(service) as (_, reports):
            await reports.until_number(1)
            service.instances.append(url)
            listed = service.num_lists
            await until(lambda: service.num_lists > listed + 2)
            assert reports.present == service.instances[:1]

    run(test())
