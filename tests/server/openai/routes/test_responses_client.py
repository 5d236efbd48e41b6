"""Responses with the official `openai` client, whose types check every field and event."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai.types import responses as types
from pydantic import BaseModel

from tests.server.openai.chatting import CALL, prompt_of
from tests.server.openai.routes.test_generation_response import failing
from tests.server.templates import QWEN, chatty, with_long_context
from tests.server.world import MODEL, TOKENIZER, Daemon, saying, serving
from wire.messages import Submit, ToServer

TOOLS: list[Any] = [
    {
        "type": "function",
        "name": "add",
        "description": "Adds numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        },
        "strict": True,
    }
]
THOUGHT_AND_CALL = f"<think>Well.</think>\n\nI add. {CALL}"


class Pet(BaseModel):
    """A form."""

    name: str
    legs: int


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("responses")
    with serving(folder, saying("hello world €"), tokenizer=chatty(QWEN)) as daemon:
        yield with_long_context(daemon)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    daemon.engine.script = saying("hello world €")
    url = f"{daemon.url}/v1"
    with openai.OpenAI(
        base_url=url, api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


def test_a_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="hi", temperature=0, metadata={"a": "b"})
    assert answer.output_text == "hello world €"
    assert (answer.status, answer.error, answer.metadata) == ("completed", None, {"a": "b"})
    assert answer.usage is not None
    assert answer.usage.output_tokens == 7


def test_every_event_is_of_the_clients_types(daemon: Daemon, client: openai.OpenAI) -> None:
    daemon.engine.script = saying(THOUGHT_AND_CALL)
    events = list(client.responses.create(model=MODEL, input="hi", tools=TOOLS, stream=True))
    for event in events:
        type(event).model_validate(event.model_dump(by_alias=True))
        assert type(event).__name__.startswith("Response"), "a type that the client knows"
    last = events[-1]
    assert isinstance(last, types.ResponseCompletedEvent)
    thought, message, call = last.response.output
    assert isinstance(thought, types.ResponseReasoningItem)
    assert thought.content is not None
    assert thought.content[0].text == "Well."
    assert isinstance(message, types.ResponseOutputMessage)
    assert isinstance(call, types.ResponseFunctionToolCall)


def test_the_clients_own_sum_of_a_stream_is_the_whole(
    daemon: Daemon, client: openai.OpenAI
) -> None:
    daemon.engine.script = saying(THOUGHT_AND_CALL)
    with client.responses.stream(model=MODEL, input="hi", tools=TOOLS) as stream:
        texts = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        answer = stream.get_final_response()
    assert texts[-1] == "I add."
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call"]
    assert answer.output[2].parsed_arguments == {"a": 1}  # type: ignore[union-attr]


def test_a_form_is_parsed(daemon: Daemon, client: openai.OpenAI) -> None:
    daemon.engine.script = saying('{"name": "Tom", "legs": 4}')
    answer = client.responses.parse(model=MODEL, input="A cat, please.", text_format=Pet)
    assert answer.output_parsed == Pet(name="Tom", legs=4)
    with client.responses.stream(model=MODEL, input="A cat.", text_format=Pet) as stream:
        assert stream.get_final_response().output_parsed == Pet(name="Tom", legs=4)


def conversing(submit: Submit) -> list[ToServer]:
    """A script: calls the tool, and then says what it got."""
    prompt = prompt_of(submit)
    if "<tool_response>" not in prompt:
        return saying(THOUGHT_AND_CALL)(submit)
    assert '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' in prompt
    return saying(prompt.split("<tool_response>")[1].split("</tool_response>")[0])(submit)


@pytest.mark.parametrize("parsed", [False, True])
def test_the_output_can_be_the_next_input(
    daemon: Daemon, client: openai.OpenAI, parsed: bool
) -> None:
    daemon.engine.script = conversing
    ask: Any = client.responses.parse if parsed else client.responses.create
    items: list[Any] = [{"role": "user", "content": "1 + 1?"}]
    items += ask(model=MODEL, input=items, tools=TOOLS).output
    call = items[-1]
    assert json.loads(call.arguments) == {"a": 1}
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "two"})
    assert ask(model=MODEL, input=items, tools=TOOLS).output_text == "two"


def test_log_probabilities_and_their_place(client: openai.OpenAI) -> None:
    # The script sends none, so that only the form is tested here.
    answer = client.responses.create(
        model=MODEL, input="hi", include=["message.output_text.logprobs"], top_logprobs=3
    )
    (message,) = answer.output
    assert isinstance(message, types.ResponseOutputMessage)
    assert isinstance(message.content[0], types.ResponseOutputText)
    assert message.content[0].logprobs == []


def test_an_answer_that_was_cut_off(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="hi", max_output_tokens=1)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text == TOKENIZER.decode(TOKENIZER.encode("hello world €")[:1])
    with client.responses.stream(model=MODEL, input="hi", max_output_tokens=1) as stream:
        assert [event.type for event in stream][-1] == "response.incomplete"


def test_a_failure(daemon: Daemon, client: openai.OpenAI) -> None:
    daemon.engine.script = failing
    *_, error, failed = client.responses.create(model=MODEL, input="hi", stream=True)
    assert isinstance(error, types.ResponseErrorEvent)
    assert isinstance(failed, types.ResponseFailedEvent)
    assert failed.response.error is not None
    assert failed.response.error.message == "The pipeline was lost."
    with pytest.raises(openai.InternalServerError, match=r"The pipeline was lost\."):
        client.responses.create(model=MODEL, input="hi")


def test_what_needs_a_stored_response_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="stores no responses"):
        client.responses.create(model=MODEL, input="hi", previous_response_id="resp_1")
    with pytest.raises(openai.NotFoundError, match="stores nothing"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="stores nothing"):
        client.responses.delete("resp_1")
    with pytest.raises(openai.NotFoundError, match="stores nothing"):
        client.responses.cancel("resp_1")
    with pytest.raises(openai.NotFoundError, match="stores nothing"):
        client.responses.input_items.list("resp_1")
