"""What a script says of its client: a line of JSON per check.

A script runs in the environment of its client, which has none of this project's dependencies. The
checks are functions that raise if the client did not do what it is for. They get the daemon's URL
and the model's name from `URL` and `MODEL`.
"""

import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
from types import FrameType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ORIGIN = os.environ.get("TDPIPE_ORIGIN", "http://127.0.0.1:8000")
URL = f"{ORIGIN}/v1"
MODEL = os.environ.get("TDPIPE_MODEL", "smollm2")
KEY = "none"
CHECK_TIMEOUT_S = 90

QUESTION = "What is the capital of France?"
FORECAST_QUESTION = "What will the weather be in Paris in 3 days?"

_checks: dict[str, Callable[[], Any]] = {}


class Forecast(BaseModel):
    """A forecast: every field has a bound, so that each model ends it."""

    city: Literal["Paris", "Rome", "Oslo"]
    days: int = Field(ge=0, le=9)
    sunny: bool


class AnyObject(BaseModel):
    """Any JSON object: for modes in which the schema is only in the prompt."""

    model_config = ConfigDict(extra="allow")


class Calls:
    """A function that a model may call; counts how often it is."""

    def __init__(self) -> None:
        self.arguments: list[tuple[str, int]] = []

    def weather(self, city: str, days: int) -> str:
        """Note the call and return a forecast."""
        self.arguments.append((city, days))
        return f"sunny in {city}"

    def must_be_one(self) -> None:
        """Raise unless there was exactly one call, with arguments of the declared types."""
        equal(len(self.arguments), 1, "calls")
        city, days = self.arguments[0]
        equal((type(city), type(days)), (str, int), "types of arguments")


# The schema of `Calls.weather`, for clients that take it as it goes over the wire.
WEATHER = {
    "name": "weather",
    "description": "The weather in a city, some days from now.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
WEATHER_TOOL = {"type": "function", "function": WEATHER}


def check(what: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function, which may be a coroutine function, as the check of `what`."""

    def register(function: Callable[[], Any]) -> Callable[[], Any]:
        _checks[what] = function
        return function

    return register


def equal(seen: object, right: object, what: str = "value") -> None:
    """Raise unless both are equal."""
    if seen != right:
        raise AssertionError(f"{what}: {seen!r:.300} instead of {right!r:.300}")


def holds(condition: object, what: str) -> None:
    """Raise unless the condition is true."""
    if not condition:
        raise AssertionError(what)


def is_forecast(answer: object) -> None:
    """Raise unless the answer is a `Forecast`, as an object or as JSON."""
    if isinstance(answer, str):
        answer = json.loads(answer)
    if isinstance(answer, dict):
        answer = Forecast.model_validate(answer)
    if not isinstance(answer, BaseModel):
        raise AssertionError(f"{answer!r:.300} is no forecast")
    Forecast.model_validate(answer.model_dump())


def run(distribution: str, *, release: str | None = None) -> None:
    """Run the registered checks and print what became of each; ends the process.

    `release` is the version of a client that is not installed as a distribution. Arguments of the
    command line select checks by a part of their name.
    """
    tell({"client": distribution, "version": release or version(distribution)})
    signal.signal(signal.SIGALRM, _time_out)
    failed = False
    for what, function in _checks.items():
        if sys.argv[1:] and not any(part in what for part in sys.argv[1:]):
            continue
        error = _error_of(function)
        failed |= error is not None
        tell({"check": what, "error": error})
    sys.stdout.flush()
    # Some clients leave threads that would keep the process from ending.
    os._exit(failed)


def tell(line: dict[str, object]) -> None:
    """Print a line for the harness."""
    print(json.dumps(line), flush=True)


def _error_of(function: Callable[[], Any]) -> str | None:
    signal.alarm(CHECK_TIMEOUT_S)
    try:
        outcome = function()
        if inspect.isawaitable(outcome):
            import asyncio

            asyncio.run(_finish(outcome))
    except BaseException as error:  # some clients end the process on an error
        if os.environ.get("TDPIPE_TRACEBACKS"):
            traceback.print_exc()
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
    return None


async def _finish(outcome: Any) -> None:
    await outcome


def _time_out(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"no answer within {CHECK_TIMEOUT_S} s")
