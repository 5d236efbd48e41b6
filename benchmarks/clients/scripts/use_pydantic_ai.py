"""pydantic-ai: agents with tools and typed answers, over both of its models."""

from functools import partial
from typing import Any

from pydantic_ai import Agent, NativeOutput, PromptedOutput, Tool, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from benchmarks.clients.scripts.checks import (
    FORECAST_QUESTION,
    KEY,
    MODEL,
    QUESTION,
    URL,
    AnyObject,
    Forecast,
    check,
    equal,
    holds,
    is_forecast,
    run,
)

LIMITS: Any = {"temperature": 0, "max_tokens": 200}


def agent(kind: Any, **settings: Any) -> Any:
    """A greedy agent that does not ask again: a second try would hide a wrong answer."""
    provider = OpenAIProvider(base_url=URL, api_key=KEY)
    model = kind(MODEL, provider=provider)
    return Agent(model, model_settings=LIMITS, retries=0, **settings)


async def talk(kind: Any) -> None:
    """Ask, then ask again with the first answer in the history."""
    result = await agent(kind).run(QUESTION)
    holds("Paris" in result.output, f"{result.output!r} does not name Paris")
    again = await agent(kind).run("And of Italy?", message_history=result.all_messages())
    holds(again.output, "no second answer")


async def stream(kind: Any) -> None:
    """The deltas of a stream are the whole answer."""
    whole = (await agent(kind).run(QUESTION)).output
    async with agent(kind).run_stream(QUESTION) as result:
        text = "".join([piece async for piece in result.stream_text(delta=True)])
    equal(text, whole)


async def typed(kind: Any, form: Any) -> None:
    """The answer has the agent's type; by default it is the argument of a required call."""
    is_forecast((await agent(kind, output_type=form).run(FORECAST_QUESTION)).output)


async def typed_stream(kind: Any) -> None:
    """The last state of a streamed call is a whole object."""
    async with agent(kind, output_type=Forecast).run_stream(FORECAST_QUESTION) as result:
        is_forecast(await result.get_output())


async def call(kind: Any) -> None:
    """A tool and a typed answer: the model must call one of two functions."""
    calls = []

    def tomorrow(city: str) -> str:
        """The weather of tomorrow."""
        calls.append(city)
        return "sunny"

    async def once(_context: Any, definition: Any) -> Any:
        # A small model would call it for ever: after a call it sees only the answer's function.
        return None if calls else definition

    caller = agent(kind, output_type=Forecast, tools=[Tool(tomorrow, prepare=once)])
    is_forecast((await caller.run(FORECAST_QUESTION)).output)
    holds(len(calls) < 2, f"{len(calls)} calls")


def register(name: str, kind: Any) -> None:
    """Register the checks of one of the two models."""
    strict, native = ToolOutput(Forecast, strict=True), NativeOutput(Forecast)
    check(f"{name}: chat")(partial(talk, kind))
    check(f"{name}: stream")(partial(stream, kind))
    check(f"{name}: typed answer (default, by a tool)")(partial(typed, kind, Forecast))
    check(f"{name}: typed answer, ToolOutput strict")(partial(typed, kind, strict))
    check(f"{name}: typed answer, NativeOutput")(partial(typed, kind, native))
    check(f"{name}: typed answer in a stream")(partial(typed_stream, kind))
    check(f"{name}: tool and typed answer")(partial(call, kind))


register("OpenAIChatModel", OpenAIChatModel)
register("OpenAIResponsesModel", OpenAIResponsesModel)


@check("OpenAIChatModel: JSON, PromptedOutput")
async def prompted() -> None:
    # The schema is only in the prompt, so any object is what the server can promise.
    settings = {**LIMITS, "max_tokens": 1500}
    caller = agent(OpenAIChatModel, output_type=PromptedOutput(AnyObject))
    holds((await caller.run(FORECAST_QUESTION, model_settings=settings)).output, "no object")


if __name__ == "__main__":
    run("pydantic-ai-slim")
