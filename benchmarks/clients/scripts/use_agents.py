"""openai-agents: an agent that calls a tool and answers with a type, over both APIs."""

from typing import Any

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_default_openai_client,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from benchmarks.clients.scripts.checks import (
    FORECAST_QUESTION,
    KEY,
    MODEL,
    QUESTION,
    URL,
    Calls,
    Forecast,
    check,
    equal,
    holds,
    is_forecast,
    run,
)

set_tracing_disabled(True)


def client() -> AsyncOpenAI:
    """A client of its own for each check, since each has its own event loop."""
    return AsyncOpenAI(base_url=URL, api_key=KEY, max_retries=0)


def responses() -> Any:
    """The SDK's default model."""
    return OpenAIResponsesModel(model=MODEL, openai_client=client())


def chats() -> Any:
    """The model for servers with chat completions only."""
    return OpenAIChatCompletionsModel(model=MODEL, openai_client=client())


def agent(model: Any, **settings: Any) -> Any:
    """A greedy agent."""
    limits = {"temperature": 0, "max_tokens": 200, **settings.pop("limits", {})}
    return Agent(name="a", model=model, model_settings=ModelSettings(**limits), **settings)


async def talk(model: Any) -> None:
    """Ask, then ask again with the first answer in the history."""
    result = await Runner.run(agent(model), QUESTION)
    holds("Paris" in result.final_output, f"{result.final_output!r} does not name Paris")
    holds(result.context_wrapper.usage.output_tokens > 0, "no usage")
    history = [*result.to_input_list(), {"role": "user", "content": "And of Italy?"}]
    holds((await Runner.run(agent(model), history)).final_output, "no second answer")


async def stream(model: Any) -> None:
    """The deltas of a stream are the whole answer."""
    result = Runner.run_streamed(agent(model), QUESTION)
    text = ""
    async for event in result.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    equal(text, result.final_output)
    holds(text, "no text")


async def call(model: Any, choice: str) -> None:
    """The agent must call once; afterwards the SDK resets the choice to "auto"."""
    calls = Calls()
    weather = function_tool(calls.weather)
    caller = agent(model, tools=[weather], limits={"tool_choice": choice})
    result = await Runner.run(caller, FORECAST_QUESTION, max_turns=2)
    calls.must_be_one()
    holds(result.final_output, "no answer after the call")


async def typed(model: Any) -> None:
    """The answer is an object of the type that the agent declares."""
    result = await Runner.run(agent(model, output_type=Forecast), FORECAST_QUESTION)
    is_forecast(result.final_output)


@check("default model (responses): chat")
async def default_model() -> None:
    set_default_openai_client(client(), use_for_tracing=False)
    await talk(MODEL)


@check("responses: stream")
async def responses_stream() -> None:
    await stream(responses())


@check("responses: tool, required")
async def responses_required() -> None:
    await call(responses(), "required")


@check("responses: tool, named")
async def responses_named() -> None:
    await call(responses(), "weather")


@check("responses: typed answer")
async def responses_typed() -> None:
    await typed(responses())


@check("chat completions: chat")
async def chat() -> None:
    await talk(chats())


@check("chat completions: stream")
async def chat_stream() -> None:
    await stream(chats())


@check("chat completions: tool, required")
async def chat_required() -> None:
    await call(chats(), "required")


@check("chat completions: tool, named")
async def chat_named() -> None:
    await call(chats(), "weather")


@check("chat completions: typed answer")
async def chat_typed() -> None:
    await typed(chats())


if __name__ == "__main__":
    run("openai-agents")
