"""The bodies of chats, compared with the official client's."""

from typing import Any, get_args

import pytest
from openai.types.chat import completion_create_params as client
from openai.types.chat.chat_completion_message_param import ChatCompletionMessageParam

from server.openai.fields.chat import ChatRequest
from server.openai.fields.conversation import ChatMessage


def test_every_field_that_the_client_can_send_is_known() -> None:
    names = set(client.CompletionCreateParamsBase.__annotations__) | {"stream"}
    assert names <= set(ChatRequest.model_fields)


def test_every_field_of_a_message_that_the_client_can_send_is_known() -> None:
    kinds = get_args(ChatCompletionMessageParam)
    names = {name for kind in kinds for name in kind.__annotations__}
    assert names <= set(ChatMessage.model_fields)


def message(**values: Any) -> dict[str, Any]:
    return ChatMessage.model_validate(values).for_template()


CALL = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"role": "user", "content": "hi", "name": "Ada"}, {"content": "hi", "name": "Ada"}),
        ({"role": "assistant", "refusal": "No."}, {"content": "No."}),
        ({"role": "assistant", "tool_calls": [CALL]}, {"content": "", "tool_calls": [CALL]}),
        ({"role": "assistant", "content": "a", "tool_calls": []}, {"content": "a"}),
        (
            {"role": "assistant", "content": "a", "reasoning": "b", "annotations": []},
            {"content": "a", "reasoning_content": "b"},
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
            {"content": [{"type": "text", "text": "No."}]},
        ),
        (
            {"role": "tool", "tool_call_id": "1", "content": "2"},
            {"tool_call_id": "1", "content": "2"},
        ),
    ],
    ids=range(7),
)
def test_messages_have_the_shape_that_templates_expect(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert message(**given) == expected | {"role": given["role"]}


def request(**values: Any) -> ChatRequest:
    hi = [{"role": "assistant", "content": "hi"}]
    return ChatRequest.model_validate({"model": "m", "messages": hi} | values)


def test_an_answer_begins_a_message_unless_it_continues_the_last() -> None:
    def begins(**values: Any) -> bool:
        asked = request(**values)
        return asked.conversation(asked.messages, None, 10).add_generation_prompt

    assert begins()
    assert not begins(add_generation_prompt=False)
    assert not begins(continue_final_message=True)


def test_the_number_of_logprobs_is_the_engines() -> None:
    assert request().num_logprobs == -1
    assert request(logprobs=True).num_logprobs == 0
    assert request(logprobs=True, top_logprobs=3).num_logprobs == 3
