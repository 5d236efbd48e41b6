"""llama-index: OpenAILike completes, chats, streams and predicts objects."""

from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

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
    limits = {"temperature": 0, "max_tokens": 200, "max_retries": 0, "context_window": 4096}
    return OpenAILike(model=MODEL, api_base=URL, api_key=KEY, **{**limits, **settings})


@check("complete and its stream")
def complete() -> None:
    plain = model(is_chat_model=False, max_tokens=12)
    whole = plain.complete("The capital of France is").text
    pieces = list(plain.stream_complete("The capital of France is"))
    equal("".join(piece.delta or "" for piece in pieces), whole)


@check("chat and its stream")
def chat() -> None:
    messages = [ChatMessage(role="user", content=QUESTION)]
    whole = model(is_chat_model=True).chat(messages).message.content
    holds("Paris" in whole, f"{whole!r} does not name Paris")
    pieces = list(model(is_chat_model=True).stream_chat(messages))
    equal("".join(piece.delta or "" for piece in pieces), whole)


@check("structured_predict by a forced tool")
def structured() -> None:
    caller = model(is_chat_model=True, is_function_calling_model=True)
    is_forecast(caller.structured_predict(Forecast, PromptTemplate(FORECAST_QUESTION)))


@check("predict_and_call")
def call() -> None:
    calls = Calls()
    caller = model(is_chat_model=True, is_function_calling_model=True)
    tool = FunctionTool.from_defaults(calls.weather)
    answer = caller.chat_with_tools([tool], user_msg=FORECAST_QUESTION, tool_required=True)
    selected = caller.get_tool_calls_from_response(answer)
    equal([one.tool_name for one in selected], ["weather"])
    tool.call(**selected[0].tool_kwargs)
    calls.must_be_one()


if __name__ == "__main__":
    run("llama-index-llms-openai-like")
