"""instructor: typed answers, by a forced tool (the default) and by JSON."""

from typing import Any

import instructor
from openai import OpenAI

from benchmarks.clients.scripts.checks import (
    FORECAST_QUESTION,
    KEY,
    MODEL,
    URL,
    AnyObject,
    Forecast,
    check,
    equal,
    holds,
    is_forecast,
    run,
)

MESSAGES: Any = [{"role": "user", "content": FORECAST_QUESTION}]


def ask(mode: Any = None) -> None:
    """Ask for a forecast; `max_retries=0`, since a retry would hide a wrong answer."""
    settings = {} if mode is None else {"mode": mode}
    client: Any = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY), **settings)
    forecast, completion = client.chat.completions.create_with_completion(
        model=MODEL, messages=MESSAGES, response_model=Forecast, max_retries=0, max_tokens=300
    )
    is_forecast(forecast)
    holds(completion.choices[0].finish_reason != "length", "the answer was cut off")


@check("typed answer, default mode (tools)")
def default_mode() -> None:
    ask()


@check("typed answer, `from_provider`")
def from_provider() -> None:
    client: Any = instructor.from_provider(f"openai/{MODEL}", base_url=URL, api_key=KEY)
    is_forecast(
        client.chat.completions.create(
            messages=MESSAGES, response_model=Forecast, max_retries=0, max_tokens=300
        )
    )


@check("typed answer, tools in strict mode")
def strict_tools() -> None:
    ask(instructor.Mode.TOOLS_STRICT)


@check("an object, JSON mode")
def json_mode() -> None:
    # The schema is only in the prompt, so any object is what the server can promise.
    client: Any = instructor.from_openai(
        OpenAI(base_url=URL, api_key=KEY), mode=instructor.Mode.JSON
    )
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, response_model=AnyObject, max_retries=0, max_tokens=400
    )
    holds(isinstance(answer, AnyObject), f"{answer!r} is no object")


@check("typed answer, JSON schema mode")
def json_schema() -> None:
    ask(instructor.Mode.JSON_SCHEMA)


@check("partial answers in a stream")
def partial() -> None:
    client: Any = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY))
    partials = list(
        client.chat.completions.create_partial(
            model=MODEL, messages=MESSAGES, response_model=Forecast, max_retries=0, max_tokens=300
        )
    )
    holds(len(partials) > 1, "the answer came in one piece")
    is_forecast(partials[-1])


@check("a list of objects in a stream")
def iterable() -> None:
    client: Any = instructor.from_openai(OpenAI(base_url=URL, api_key=KEY))
    many = list(
        client.chat.completions.create_iterable(
            model=MODEL, messages=MESSAGES, response_model=Forecast, max_retries=0, max_tokens=300
        )
    )
    holds(many, "the list is empty")
    equal({type(one).__name__ for one in many}, {"Forecast"})


if __name__ == "__main__":
    run("instructor")
