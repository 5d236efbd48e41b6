"""dspy: chats, completions and typed answers."""

from typing import Any

import dspy

from benchmarks.clients.scripts.checks import (
    FORECAST_QUESTION,
    KEY,
    MODEL,
    QUESTION,
    URL,
    Forecast,
    check,
    holds,
    is_forecast,
    run,
)

CLIENT: Any = dspy


def model(**settings: Any) -> Any:
    """A greedy model without dspy's cache, which would answer in the server's place."""
    limits = {"temperature": 0, "max_tokens": 200, "cache": False, "num_retries": 0}
    return CLIENT.LM(f"openai/{MODEL}", api_base=URL, api_key=KEY, **{**limits, **settings})


@check("chat")
def chat() -> None:
    text = model()(QUESTION)[0]
    holds("Paris" in (text if isinstance(text, str) else text["text"]), f"{text!r}: no Paris")


@check("completion")
def completion() -> None:
    holds(model(model_type="text", max_tokens=8)("The capital of France is")[0], "no text")


@check("typed answer (response_format)")
def typed() -> None:
    # The adapters leave the form of an answer to the prompt unless the model is a known one.
    is_forecast(model()(FORECAST_QUESTION, response_format=Forecast)[0])


if __name__ == "__main__":
    run("dspy")
