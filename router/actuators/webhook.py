"""Webhook: a service of the operator's starts, stops and lists instances, by one URL.

    POST URL  {"action": "grow"}                          start one more instance
    POST URL  {"action": "remove", "instance": "http://..."}  stop this one, which has drained
    GET URL   ["http://10.0.0.5:8000", ...]                 the instances that can be reached

Each POST has an `idempotency-key`, the same when it is repeated because its answer was lost.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Sequence

import httpx
import msgspec

from configs.schema.instance_url import checked_url
from configs.schema.scaling import ScalingConfig
from router.actuators.actuator import ActuatorError, GrowthLimit, Lifetime, Report, happens
from router.actuators.membership import Membership

NUM_TRIES = 5
BACK_OFF_S = 0.5
MAX_LIST_BYTES = 1 << 20
MAX_URL_CHARS = 1000
# The service may wait for a scheduler of its own before it answers.
TIMEOUT = httpx.Timeout(30.0, connect=5.0)

log = logging.getLogger("tdpipe")


class WebhookActuator:
    """An `Actuator` that asks the service at `webhook_url`."""

    def __init__(self, config: ScalingConfig, back_off_s: float = BACK_OFF_S) -> None:
        assert config.webhook_url is not None, "the settings are validated"
        self._config = config
        self._url = config.webhook_url
        self._back_off_s = back_off_s
        self._members = Membership(config.min_instances)
        self._growth = GrowthLimit(config.max_instances, config.scale_cooldown)
        self._listed: dict[str, str] = {}
        self._replacing: asyncio.Task[None] | None = None
        self._known_at_start: frozenset[str] = frozenset()
        self._starting_until = float("-inf")
        self._lifetime = Lifetime()
        token = config.webhook_token
        headers = {"authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=TIMEOUT)

    async def run(self, on_joined: Report, on_gone: Report) -> None:
        """See `Actuator`."""
        self._members.begin(on_joined, on_gone)
        await self._lifetime.run(self._discover())

    async def grow(self) -> None:
        """See `Actuator`; one is being started until a new one is listed, or does not come."""
        if time.monotonic() < self._starting_until or not self._growth.allows(len(self._members)):
            return
        self._growth.start()
        self._known_at_start = self._members.names
        self._starting_until = time.monotonic() + self._config.instance_start_timeout
        try:
            await self._post({"action": "grow"})
        except BaseException:
            self._starting_until = float("-inf")
            raise

    async def remove(self, name: str) -> None:
        """See `Actuator`; it is gone when the service does not list it any more."""
        try:
            listed = self._listed.get(name, name)
            await self._post({"action": "remove", "instance": listed})
            if not await self._members.wait_gone(name, self._config.instance_stop_timeout):
                raise ActuatorError(
                    f"the webhook still lists {name} {self._config.instance_stop_timeout:g} s "
                    "(instance_stop_timeout) after its removal"
                )
        except ActuatorError:
            self._members.rejoin(name)
            raise

    def pick(self, names: Sequence[str]) -> str | None:
        """See `Actuator`."""
        return self._members.pick(names)

    async def close(self) -> None:
        """End `run`, and close the connections."""
        await self._lifetime.close()
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.wait((self._replacing,))
        await self._http.aclose()

    async def _discover(self) -> None:
        problem = ""
        while True:
            try:
                self._listed = await self._list()
                self._members.update(self._listed)
            except ActuatorError as error:
                if str(error) != problem:
                    log.warning("%s; the instances last listed are kept", error)
                problem = str(error)
            else:
                if problem:
                    log.info("the webhook lists instances again: %d", len(self._members))
                problem = ""
            if self._members.names - self._known_at_start:
                self._starting_until = float("-inf")
            is_short = len(self._members) < self._config.min_instances
            if is_short and not problem and (self._replacing is None or self._replacing.done()):
                self._replacing = asyncio.create_task(self._replace())
            await asyncio.sleep(self._config.webhook_interval)

    async def _replace(self) -> None:
        """Ask for another one, since there are fewer than `min_instances`."""
        try:
            await self.grow()
        except ActuatorError as error:
            log.warning("%s, but there are fewer than min_instances", error)
        # A bug here must not be silent, nor end the router.
        except Exception:
            log.exception("the actuator failed")

    async def _post(self, action: dict[str, str]) -> None:
        """Post until the service accepts. Raises `ActuatorError`."""
        headers = {"idempotency-key": uuid.uuid4().hex}
        for attempt in range(NUM_TRIES):
            if attempt:
                await happens(self._lifetime.closed, self._back_off_s * 2 ** (attempt - 1))
            if self._lifetime.closed.is_set():
                raise ActuatorError("the actuator is closed")
            try:
                answer = await self._http.post(self._url, json=action, headers=headers)
            except httpx.HTTPError as error:
                problem = f"cannot be reached: {_describe(error)}"
                continue
            if answer.is_success:
                return
            problem = f"answered {answer.status_code}"
            if answer.status_code < 500 and answer.status_code != 429:
                break  # the same request would be refused again
        raise ActuatorError(f"the webhook {problem} to {action['action']}")

    async def _list(self) -> dict[str, str]:
        """By their usual URLs, those that the service has. Raises `ActuatorError`."""
        body = bytearray()
        try:
            async with self._http.stream("GET", self._url) as answer:
                if not answer.is_success:
                    raise ActuatorError(f"the webhook answered {answer.status_code} to GET")
                async for piece in answer.aiter_bytes():
                    body += piece
                    if len(body) > MAX_LIST_BYTES:
                        raise ActuatorError("the webhook's list of instances exceeds 1 MiB")
        except httpx.HTTPError as error:
            raise ActuatorError(f"the webhook cannot be reached: {_describe(error)}") from error
        return _parse(bytes(body))


def _parse(body: bytes) -> dict[str, str]:
    try:
        urls = msgspec.json.decode(body, type=list[str])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ActuatorError(f"the webhook's answer is no JSON list of URLs: {error}") from error
    try:
        return {checked_url(url[:MAX_URL_CHARS]): url for url in urls}
    except ValueError as error:
        raise ActuatorError(f"the webhook lists what is no URL of a daemon: {error}") from error


def _describe(error: Exception) -> str:
    return str(error) or type(error).__name__
