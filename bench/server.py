"""The server that is measured: what it serves, and what it accepts and counts."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from bench.call import COMPLETIONS, Call, Endpoint, prompt_fields
from bench.exchange import Address, exchange, fetch
from bench.filler_text import FillerText, all_words
from bench.results.record import Record

PROBE_TIMEOUT_S = 300.0
_READY_PAUSE_S = 1.0
# The statuses of servers that do not know a field.
_UNKNOWN_FIELD = ("HTTP 400", "HTTP 422")
# Those of servers, or of proxies before them, that are still starting.
_STARTING = ("HTTP 502", "HTTP 503", "HTTP 504")

Result = TypeVar("Result")


class LoadError(Exception):
    """The server cannot be reached or used; the text is one line for the user."""


class NotReadyError(LoadError):
    """The server does not answer yet; it may later."""


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """The server and the model; without `model`, the first one that the server lists."""

    address: Address
    model: str | None = None
    include_usage: bool = True


@dataclass(frozen=True, slots=True)
class ProbedServer:
    """What a few short requests have shown."""

    include_usage: bool
    filler: FillerText = field(default_factory=FillerText)


async def when_ready(ask: Callable[[], Awaitable[Result]], timeout_s: float) -> Result:
    """What `ask` returns, asked again for `timeout_s` while the server is not ready.

    Raises `LoadError`.
    """
    loop = asyncio.get_running_loop()
    gives_up_at = loop.time() + timeout_s
    while True:
        try:
            return await ask()
        except NotReadyError:
            if loop.time() + _READY_PAUSE_S > gives_up_at:
                raise
        await asyncio.sleep(_READY_PAUSE_S)


async def describe_server(target: LoadTarget) -> dict[str, Any]:
    """The model, its longest sequence and the server's version, as far as the server tells.

    Raises `LoadError`.
    """
    status, served = await _get_json(target.address, "/v1/models")
    if status in (401, 403):
        raise LoadError(f"{target.address} wants another API key (HTTP {status}): see --api-key")
    models = {model["id"]: model for model in _listed(served)}
    if not models and target.model is None:
        raise NotReadyError(
            f"no OpenAI API at {target.address}: /v1/models names no model (HTTP {status}); "
            "--model names one that is not listed"
        )
    name = target.model or next(iter(models))
    if models and name not in models:
        raise LoadError(f"no model {name!r} at {target.address}: {', '.join(models)}")
    _, version = await _get_json(target.address, "/version")
    return {
        "model": name,
        "max_model_len": models.get(name, {}).get("max_model_len"),
        "version": version.get("version"),
    }


async def probe(
    target: LoadTarget,
    model: str,
    endpoint: Endpoint = COMPLETIONS,
    extra: Mapping[str, Any] | None = None,
    *,
    counts_words: bool = False,
) -> ProbedServer:
    """Send one short request with the `extra` fields of all, or two that count words.

    Raises `LoadError` with the server's words if it refuses them.
    """

    async def ask(prompt: str, *, include_usage: bool) -> Record:
        fields = {**prompt_fields(endpoint, prompt), "max_tokens": 1, **(extra or {})}
        body = Call(endpoint, fields).body(model, include_usage=include_usage)
        return await _ask(target.address, endpoint, body)

    once = all_words(1)
    first = await ask(once, include_usage=True)
    include_usage = first.error_kind not in _UNKNOWN_FIELD
    if not include_usage:
        first = await ask(once, include_usage=False)
    if first.error is not None:
        kind = NotReadyError if first.error_kind in _STARTING else LoadError
        raise kind(f"{target.address}{endpoint} fails: {first.error}")
    if not (counts_words and first.has_usage):
        return ProbedServer(include_usage)
    second = await ask(all_words(2), include_usage=include_usage)
    if second.error is not None:
        raise LoadError(f"{target.address}{endpoint} fails: {second.error}")
    filler = FillerText.measured(first.num_prompt_tokens, second.num_prompt_tokens)
    return ProbedServer(include_usage, filler)


async def _ask(address: Address, endpoint: Endpoint, body: Mapping[str, Any]) -> Record:
    loop = asyncio.get_running_loop()
    record = Record(arrival_s=0.0)
    record.send(loop.time())
    request = address.post(endpoint, msgspec.json.encode(body))
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            status = await exchange(
                address, request, lambda status, data: record.feed(status, data, loop.time())
            )
    except OSError as error:
        raise NotReadyError(f"no answer from {address}{endpoint}: {error or 'timeout'}") from error
    record.end(status, loop.time())
    return record


def _listed(served: Mapping[str, Any]) -> list[dict[str, Any]]:
    models = served.get("data")
    if not isinstance(models, list):
        return []
    return [model for model in models if isinstance(model, dict) and "id" in model]


async def _get_json(address: Address, path: str) -> tuple[int, dict[str, Any]]:
    """The status, and the object at `path` if there is one. Raises `LoadError` without a server."""
    try:
        status, body = await fetch(address, path)
    except OSError as error:
        reason = error.strerror or str(error) or "it does not answer"
        raise NotReadyError(f"no server at {address}: {reason}") from error
    if status != 200:
        return status, {}
    try:
        return status, msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        return status, {}
