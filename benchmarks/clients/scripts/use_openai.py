"""openai-python: chat, completions, helpers, files, batches and responses."""

import json
import time
from typing import Any

import openai
from openai import OpenAI

from benchmarks.clients.scripts.checks import (
    FORECAST_QUESTION,
    KEY,
    MODEL,
    QUESTION,
    URL,
    WEATHER,
    WEATHER_TOOL,
    Forecast,
    check,
    equal,
    holds,
    is_forecast,
    run,
)

# `Any`: the types of a body are the subject here, and checked by the server.
client: Any = OpenAI(base_url=URL, api_key=KEY, max_retries=0)
BATCH_TIMEOUT_S = 60
ENDED = {"completed", "failed", "expired", "cancelled"}


def chat(question: str = QUESTION, **fields: Any) -> Any:
    """A greedy chat completion."""
    return client.chat.completions.create(**body(question, **fields))


def body(question: str = QUESTION, **fields: Any) -> dict[str, Any]:
    """The fields of a greedy chat."""
    messages = [{"role": "user", "content": question}]
    return {"model": MODEL, "messages": messages, "temperature": 0, **fields}


@check("chat")
def plain_chat() -> None:
    answer = chat()
    holds("Paris" in answer.choices[0].message.content, "the answer does not name Paris")
    equal(answer.choices[0].finish_reason, "stop")
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)


@check("stream equals the whole answer")
def stream() -> None:
    for limit in (3, 200):
        *chunks, last = chat(stream=True, stream_options={"include_usage": True}, max_tokens=limit)
        whole = chat(max_tokens=limit)
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        text = "".join(delta.content or "" for delta in deltas)
        equal(text, whole.choices[0].message.content, "the stream's text")
        equal(chunks[-1].choices[0].finish_reason, whole.choices[0].finish_reason)
        equal(last.usage, whole.usage, "usage")
        # Some clients take no text from the chunk that ends the choice.
        holds(not chunks[-1].choices[0].delta.content, "text beside finish_reason")
        holds(all(delta.content is not None for delta in deltas[:-1]), "a delta without content")


@check("usage on each chunk (continuous_usage_stats)")
def continuous_usage() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = chat(stream=True, stream_options=options, max_tokens=8)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    equal(counts, sorted(counts), "the counts in order")
    equal(counts[-1], last.usage.completion_tokens, "the last count")


@check("the role comes with the first token")
def role_chunk() -> None:
    begin = time.monotonic()
    stream = chat("Summarise: " + "the cat sat on the mat. " * 60, stream=True, max_tokens=8)
    times = [time.monotonic() - begin for _ in stream]
    holds(times[0] > times[1] / 2, f"first chunk {times[0]:.3f} s, second {times[1]:.3f} s")


@check("completion, log-probabilities")
def completion() -> None:
    fields = {"model": MODEL, "prompt": "The capital of France is", "temperature": 0}
    whole = client.completions.create(**fields, max_tokens=8, logprobs=2).choices[0]
    pieces = client.completions.create(**fields, max_tokens=8, stream=True)
    equal("".join(piece.choices[0].text for piece in pieces), whole.text)
    equal(len(whole.logprobs.tokens), 8, "tokens")
    equal("".join(whole.logprobs.tokens), whole.text)


@check("parse (json_schema)")
def parse() -> None:
    answer = client.chat.completions.parse(**body(FORECAST_QUESTION), response_format=Forecast)
    is_forecast(answer.choices[0].message.parsed)


@check("stream helper with a schema")
def stream_helper() -> None:
    with client.chat.completions.stream(
        **body(FORECAST_QUESTION), response_format=Forecast
    ) as events:
        kinds = {event.type for event in events}
        is_forecast(events.get_final_completion().choices[0].message.parsed)
    holds({"content.delta", "content.done"} <= kinds, f"events {kinds}")


def one_call(message: Any) -> None:
    """Raise unless the message has exactly one call, with whole arguments."""
    equal([call.function.name for call in message.tool_calls], ["weather"], "calls")
    equal(set(json.loads(message.tool_calls[0].function.arguments)), {"city", "days"})


NAMED = {"type": "function", "function": {"name": "weather"}}


@check("named tool: one call")
def named_tool() -> None:
    answer = chat(FORECAST_QUESTION, tools=[WEATHER_TOOL], tool_choice=NAMED, max_tokens=100)
    one_call(answer.choices[0].message)


@check("required tool: one call")
def required_tool() -> None:
    answer = chat(FORECAST_QUESTION, tools=[WEATHER_TOOL], tool_choice="required", max_tokens=100)
    one_call(answer.choices[0].message)
    equal(answer.choices[0].finish_reason, "tool_calls")


@check("tools in the stream helper, `pydantic_function_tool`")
def stream_tools() -> None:
    tools = [openai.pydantic_function_tool(Forecast)]
    fields = body(FORECAST_QUESTION, tools=tools, tool_choice="required", max_tokens=200)
    with client.chat.completions.stream(**fields) as events:
        done = [e for e in events if e.type == "tool_calls.function.arguments.done"]
        final = events.get_final_completion()
    equal(len(done), 1, "ended calls")
    equal(len(final.choices[0].message.tool_calls), 1, "calls")
    is_forecast(final.choices[0].message.tool_calls[0].function.parsed_arguments)


@check("an answer after a call")
def after_call() -> None:
    fields = {"tools": [WEATHER_TOOL], "max_tokens": 100}
    first = chat(FORECAST_QUESTION, **fields, tool_choice="required").choices[0].message
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in first.tool_calls
    ]
    messages = [{"role": "user", "content": FORECAST_QUESTION}, first, *results]
    second = client.chat.completions.create(model=MODEL, messages=messages, **fields)
    holds(second.choices[0].message.content, "no answer after the call")


@check("errors have types and fields")
def errors() -> None:
    try:
        chat(temperature=-1)
    except openai.BadRequestError as error:
        equal(error.param, "temperature", "param")
    else:
        raise AssertionError("a temperature of -1 was taken")
    try:
        client.chat.completions.create(**{**body(), "model": "nosuch"})
    except openai.NotFoundError as error:
        equal(error.code, "model_not_found", "code")
    else:
        raise AssertionError("an unknown model was taken")


@check("models")
def models() -> None:
    holds(MODEL in [model.id for model in client.models.list()], "the model is not listed")
    equal(client.models.retrieve(MODEL).id, MODEL)


@check("files")
def files() -> None:
    file = client.files.create(file=("in.jsonl", line("one")), purpose="batch")
    holds(file.id in [kept.id for kept in client.files.list()], "the file is not listed")
    equal(client.files.content(file.id).read(), line("one"), "content")
    holds(client.files.delete(file.id).deleted, "the file was not deleted")


@check("batches")
def batches() -> None:
    file = client.files.create(file=("in.jsonl", line("one") + line("two")), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    ends_at = time.monotonic() + BATCH_TIMEOUT_S
    while batch.status not in ENDED and time.monotonic() < ends_at:
        time.sleep(0.5)
        batch = client.batches.retrieve(batch.id)
    equal((batch.status, batch.request_counts.completed), ("completed", 2))
    lines = client.files.content(batch.output_file_id).text.splitlines()
    equal({json.loads(line)["custom_id"] for line in lines}, {"one", "two"})
    holds(batch.id in [kept.id for kept in client.batches.list()], "the batch is not listed")


def line(custom_id: str) -> bytes:
    """A line of a batch's input."""
    request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps(request | {"body": body(max_tokens=4)}).encode() + b"\n"


@check("responses")
def responses() -> None:
    answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
    holds("Paris" in answer.output_text, f"{answer.output_text!r} does not name Paris")
    equal(answer.status, "completed")
    history = [{"role": "user", "content": QUESTION}, *answer.output]
    history += [{"role": "user", "content": "And of Italy?"}]
    second = client.responses.create(model=MODEL, input=history, instructions="Be brief.")
    holds(second.output_text, "no second answer")


@check("responses: stream equals the whole answer")
def responses_stream() -> None:
    fields: Any = {"model": MODEL, "input": QUESTION, "temperature": 0}
    with client.responses.stream(**fields) as events:
        text = "".join(
            event.delta for event in events if event.type == "response.output_text.delta"
        )
        final = events.get_final_response()
    equal(text, final.output_text, "the deltas")
    equal(text, client.responses.create(**fields).output_text, "the stream's text")


@check("responses: parse")
def responses_parse() -> None:
    answer = client.responses.parse(model=MODEL, input=FORECAST_QUESTION, text_format=Forecast)
    is_forecast(answer.output_parsed)


@check("responses: named tool, then an answer")
def responses_tool() -> None:
    tools = [{"type": "function", "strict": True, **WEATHER}]
    fields: Any = {"model": MODEL, "tools": tools, "max_output_tokens": 200}
    named = {"type": "function", "name": "weather"}
    first = client.responses.create(input=FORECAST_QUESTION, tool_choice=named, **fields)
    calls = [item for item in first.output if item.type == "function_call"]
    equal([call.name for call in calls], ["weather"], "calls")
    equal(set(json.loads(calls[0].arguments)), {"city", "days"})
    result = {"type": "function_call_output", "call_id": calls[0].call_id, "output": "sunny"}
    history: Any = [{"role": "user", "content": FORECAST_QUESTION}, *first.output, result]
    second = client.responses.create(input=history, tool_choice="none", **fields)
    holds(second.output_text, "no answer after the call")


if __name__ == "__main__":
    run("openai")
