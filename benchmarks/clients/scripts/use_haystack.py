"""haystack: the chat generators, streams, tools, typed answers."""

from typing import Any

from haystack.components.generators.chat import OpenAIChatGenerator, OpenAIResponsesChatGenerator
from haystack.dataclasses import ChatMessage
from haystack.tools import Tool
from haystack.utils import Secret

from benchmarks.clients.scripts.checks import (
    FORECAST_QUESTION,
    KEY,
    MODEL,
    QUESTION,
    URL,
    WEATHER,
    Calls,
    Forecast,
    check,
    equal,
    holds,
    is_forecast,
    run,
)


def ask(question: str, kind: Any = OpenAIChatGenerator, settings: Any = None, **fields: Any) -> Any:
    """The only reply of a generator."""
    generator = kind(
        api_key=Secret.from_token(KEY), model=MODEL, api_base_url=URL, max_retries=0,
        generation_kwargs={"temperature": 0, **(settings or {})}, **fields,
    )  # fmt: skip
    return generator.run([ChatMessage.from_user(question)])["replies"][0]


@check("chat and its stream")
def chat() -> None:
    whole = ask(QUESTION).text
    holds("Paris" in whole, f"{whole!r} does not name Paris")
    pieces: list[str] = []
    equal(ask(QUESTION, streaming_callback=lambda chunk: pieces.append(chunk.content)).text, whole)
    equal("".join(pieces), whole, "the stream's text")


def weather(calls: Calls) -> Tool:
    """The tool."""
    texts = {"name": WEATHER["name"], "description": WEATHER["description"]}
    return Tool(**texts, parameters=WEATHER["parameters"], function=calls.weather)


@check("tool, required, whole and in a stream")
def tool() -> None:
    for callback in (None, lambda _chunk: None):
        calls = Calls()
        settings = {"tool_choice": "required", "max_tokens": 100}
        reply = ask(
            FORECAST_QUESTION, settings=settings, tools=[weather(calls)],
            streaming_callback=callback,
        )  # fmt: skip
        equal([call.tool_name for call in reply.tool_calls], ["weather"])
        calls.weather(**reply.tool_calls[0].arguments)
        calls.must_be_one()


@check("typed answer (response_format)")
def typed() -> None:
    is_forecast(ask(FORECAST_QUESTION, settings={"response_format": Forecast}).text)


@check("responses")
def responses() -> None:
    holds("Paris" in ask(QUESTION, OpenAIResponsesChatGenerator).text, "no Paris")


if __name__ == "__main__":
    run("haystack-ai")
