"""litellm: chat, text completion, streams, tools, responses."""

from typing import Any

import litellm

from benchmarks.clients.scripts.checks import (
    FORECAST_QUESTION,
    KEY,
    MODEL,
    QUESTION,
    URL,
    WEATHER_TOOL,
    Forecast,
    check,
    equal,
    holds,
    is_forecast,
    run,
)

CLIENT: Any = litellm
SERVER = {"api_base": URL, "api_key": KEY, "num_retries": 0}


def chat(question: str = QUESTION, prefix: str = "openai", **fields: Any) -> Any:
    """A greedy chat."""
    messages = [{"role": "user", "content": question}]
    return CLIENT.completion(
        model=f"{prefix}/{MODEL}", messages=messages, temperature=0, **SERVER, **fields
    )


@check("chat and its stream, as `openai/` and as `hosted_vllm/`")
def streams() -> None:
    for prefix in ("openai", "hosted_vllm"):
        whole = chat(prefix=prefix).choices[0].message.content
        holds("Paris" in whole, f"{whole!r} does not name Paris")
        chunks = list(chat(prefix=prefix, stream=True))
        equal("".join(chunk.choices[0].delta.content or "" for chunk in chunks), whole)


@check("text completion")
def text_completion() -> None:
    answer = CLIENT.text_completion(
        model=f"text-completion-openai/{MODEL}", prompt="The capital of France is", max_tokens=8,
        **SERVER,
    )  # fmt: skip
    holds(answer.choices[0].text, "no text")


@check("typed answer (response_format)")
def typed() -> None:
    is_forecast(chat(FORECAST_QUESTION, response_format=Forecast).choices[0].message.content)


@check("named tool: one call")
def tool() -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    answer = chat(FORECAST_QUESTION, tools=[WEATHER_TOOL], tool_choice=named, max_tokens=100)
    equal([call.function.name for call in answer.choices[0].message.tool_calls], ["weather"])


@check("responses and their stream")
def responses() -> None:
    fields: Any = {"model": f"openai/{MODEL}", "input": QUESTION, "temperature": 0, **SERVER}
    text = "".join(part.text for item in CLIENT.responses(**fields).output for part in item.content)
    holds("Paris" in text, f"{text!r} does not name Paris")
    events = CLIENT.responses(**fields, stream=True)
    equal("".join(e.delta for e in events if e.type == "response.output_text.delta"), text)


if __name__ == "__main__":
    run("litellm")
