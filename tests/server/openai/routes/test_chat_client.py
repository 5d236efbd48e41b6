"""Chat with the official `openai` client."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from tests.server.openai.chatting import prompt_of
from tests.server.templates import QWEN, chatty, with_long_context
from tests.server.world import MODEL, TOKENIZER, Daemon, generated, saying, serving
from wire.messages import Finished, Submit, ToServer

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds numbers.",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}},
            "strict": True,
        },
    }
]
HI: list[Any] = [{"role": "user", "content": "hi"}]
CALL = '<think>Well.</think>\n<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("chat")
    with serving(folder, saying("hello world €"), tokenizer=chatty(QWEN)) as daemon:
        yield with_long_context(daemon)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    daemon.engine.script = saying("hello world €")
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, n=2, temperature=0)
    assert [choice.message.content for choice in answer.choices] == ["hello world €"] * 2
    assert answer.choices[0].message.refusal is None
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 14
    assert answer.system_fingerprint is not None


def test_a_stream(client: openai.OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello world €"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage is not None
    assert last.usage.completion_tokens == 7


def test_the_clients_own_sum_of_a_stream_is_the_whole(
    daemon: Daemon, client: openai.OpenAI
) -> None:
    daemon.engine.script = saying(CALL)
    with client.chat.completions.stream(model=MODEL, messages=HI, tools=TOOLS) as stream:
        answer = stream.get_final_completion()
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})


def conversing(submit: Submit) -> list[ToServer]:
    """A script: a call first; once its result is in the prompt, the answer."""
    text = "It is 2." if "<tool_response>2" in prompt_of(submit) else CALL
    tokens = (generated(submit.sequence_id, id_) for id_ in TOKENIZER.encode(text))
    return [*tokens, Finished(submit.sequence_id, "stop")]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_result_go_round(
    daemon: Daemon, client: openai.OpenAI, stream: bool
) -> None:
    daemon.engine.script = conversing
    if stream:
        with client.chat.completions.stream(model=MODEL, messages=HI, tools=TOOLS) as events:
            message: Any = events.get_final_completion().choices[0].message
    else:
        first = client.chat.completions.create(model=MODEL, messages=HI, tools=TOOLS)
        message = first.choices[0].message
    assert message.tool_calls[0].function.name == "add"
    # The message goes back as it came, with all that the client has made of it.
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "2"}
    messages: list[Any] = [*HI, message.model_dump(), result]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)
    assert second.choices[0].message.content == "It is 2."
    assert second.choices[0].message.tool_calls is None


def test_reasoning_stands_beside_the_content(daemon: Daemon, client: openai.OpenAI) -> None:
    daemon.engine.script = saying("<think>Well.</think>hello")
    message: Any = client.chat.completions.create(model=MODEL, messages=HI).choices[0].message
    assert (message.reasoning_content, message.reasoning) == ("Well.", "Well.")
    assert message.content == "hello"


class Person(BaseModel):
    """What the client asks for as a form."""

    name: str
    age: int


def test_an_answer_is_parsed_into_the_clients_own_class(
    daemon: Daemon, client: openai.OpenAI
) -> None:
    daemon.engine.script = saying('{"name": "Ada", "age": 36}')
    answer = client.chat.completions.parse(model=MODEL, messages=HI, response_format=Person)
    assert answer.choices[0].message.parsed == Person(name="Ada", age=36)


def test_vllms_extensions(client: openai.OpenAI) -> None:
    extra = {"top_k": 3, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}}
    answer = client.chat.completions.create(model=MODEL, messages=HI, extra_body=extra)
    assert answer.choices[0].message.content == "hello world €"


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=HI)
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=[])
    assert wrong.value.param == "messages"


def test_a_full_queue_is_the_clients_rate_limit(tmp_path: Path) -> None:
    with (
        serving(tmp_path, max_num_queued_reqs=1, tokenizer=chatty(QWEN)) as daemon,
        openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client,
    ):
        with_long_context(daemon)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=MODEL, messages=HI, n=2)
