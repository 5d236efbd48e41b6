"""langchain-openai: all methods of structured output, tools, streams."""

from typing import Any

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

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


def model(**settings: Any) -> Any:
    """A greedy model."""
    return ChatOpenAI(
        base_url=URL, api_key=KEY, model=MODEL, temperature=0, max_retries=0, **settings
    )


@check("chat")
def chat() -> None:
    answer = model().invoke(QUESTION)
    holds("Paris" in answer.content, f"{answer.content!r} does not name Paris")
    holds(answer.usage_metadata["output_tokens"] > 0, "no usage")


@check("stream equals the whole answer")
def stream() -> None:
    chunks = list(model(stream_usage=True).stream(QUESTION))
    equal("".join(chunk.content for chunk in chunks), model().invoke(QUESTION).content)
    holds(any(chunk.usage_metadata for chunk in chunks), "no usage")


@check("completion and its stream")
def completion() -> None:
    old = OpenAI(base_url=URL, api_key=KEY, model=MODEL, temperature=0, max_tokens=12)
    equal("".join(old.stream("The capital of France is")), old.invoke("The capital of France is"))


def structured(method: str, **settings: Any) -> None:
    """Ask for a forecast by a method; the raw message tells why parsing failed."""
    typed = model(max_tokens=300).with_structured_output(
        Forecast, method=method, include_raw=True, **settings
    )
    question = FORECAST_QUESTION
    if method == "json_mode":
        question += ' Answer as JSON like {"city": "Rome", "days": 1, "sunny": true}.'
    answer = typed.invoke(question)
    holds(answer["parsing_error"] is None, f"{answer['parsing_error']}: {answer['raw']!r:.300}")
    if method == "json_mode":
        holds(isinstance(answer["raw"].content, str), "no JSON")
    is_forecast(answer["parsed"])


@check("structured output, json_schema (default)")
def json_schema() -> None:
    structured("json_schema")


@check("structured output, json_schema, strict")
def json_schema_strict() -> None:
    structured("json_schema", strict=True)


@check("structured output, function_calling")
def function_calling() -> None:
    structured("function_calling")


@check("structured output, function_calling, strict")
def function_calling_strict() -> None:
    structured("function_calling", strict=True)


@check("structured output, json_mode")
def json_mode() -> None:
    structured("json_mode")


@check("structured output in a stream")
def structured_stream() -> None:
    typed = model(max_tokens=300).with_structured_output(Forecast, method="function_calling")
    is_forecast(list(typed.stream(FORECAST_QUESTION))[-1])


def bound(choice: Any) -> None:
    """Let the model call a tool, call it, and let the model answer with the result."""
    calls = Calls()
    weather = tool(calls.weather)
    messages: list[Any] = [HumanMessage(FORECAST_QUESTION)]
    answer = model(max_tokens=300).bind_tools([weather], tool_choice=choice).invoke(messages)
    equal(len(answer.tool_calls), 1, "calls")
    equal(answer.invalid_tool_calls, [], "invalid calls")
    (call,) = answer.tool_calls
    equal((call["name"], set(call["args"])), ("weather", {"city", "days"}))
    result = weather.invoke(call["args"])
    calls.must_be_one()
    messages += [answer, ToolMessage(result, tool_call_id=call["id"])]
    last = model(max_tokens=40).bind_tools([weather], tool_choice="none").invoke(messages)
    holds(last.content and not last.tool_calls, "no answer after the call")


@check("bind_tools, named")
def bind_named() -> None:
    bound("weather")


@check("bind_tools, required")
def bind_required() -> None:
    bound("required")


@check("bind_tools in a stream")
def bind_stream() -> None:
    weather = tool(Calls().weather)
    pieces = list(
        model(max_tokens=300).bind_tools([weather], tool_choice="weather").stream(FORECAST_QUESTION)
    )
    whole = pieces[0]
    for piece in pieces[1:]:
        whole += piece
    equal([call["name"] for call in whole.tool_calls], ["weather"])


@check("responses")
def responses() -> None:
    answer = model(use_responses_api=True).invoke(QUESTION)
    holds("Paris" in answer.text, f"{answer.content!r} does not name Paris")


@check("responses, structured output and tools")
def responses_structured() -> None:
    typed = model(use_responses_api=True).with_structured_output(Forecast)
    is_forecast(typed.invoke(FORECAST_QUESTION))
    weather = tool(Calls().weather)
    caller = model(use_responses_api=True).bind_tools([weather], tool_choice="weather")
    equal([call["name"] for call in caller.invoke(FORECAST_QUESTION).tool_calls], ["weather"])


if __name__ == "__main__":
    run("langchain-openai")
