"""Chat templates of several model families: conversations rendered as prompts."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from configs.schema.model import ChatConfig
from server.chat import chat_template
from server.chat.chat_template import ChatTemplate, ChatTemplateError, chat_template_of, continued
from server.http.errors import ApiError
from server.openai.fields.conversation import Conversation
from server.text.tokenizer import Tokenizer
from tests.server.templates import CHATML, LLAMA3, PARTS_ONLY, QWEN, chatty
from tests.server.world import BEGIN

USER = {"role": "user", "content": "How are you?"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
CALLS = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "2"}


def text(given: str | ChatTemplate, /, *messages: dict[str, Any], **values: Any) -> str:
    template = given if isinstance(given, ChatTemplate) else ChatTemplate(chatty(given))
    return asyncio.run(template.render_text(Conversation(messages, **values)))


def refusal(given: str | ChatTemplate | None, /, *messages: dict[str, Any], **values: Any) -> str:
    template = given if isinstance(given, ChatTemplate) else ChatTemplate(chatty(given))
    with pytest.raises(ApiError) as refused:
        text(template, *messages, **values)
    assert refused.value.status == 400
    return str(refused.value)


def test_chatml() -> None:
    messages = ({"role": "system", "content": "Be brief."}, USER)
    assert text(CHATML, *messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHow are you?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_tools_calls_and_results_as_qwen_has_them() -> None:
    prompt = text(QWEN, USER, CALLS, RESULT, tools=[TOOL])
    assert '"name": "add", "parameters": {"type": "object"}' in prompt
    assert prompt.endswith(
        "<|im_start|>user\nHow are you?<|im_end|>\n"
        "<|im_start|>assistant\n"
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>2</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_calls_and_results_as_llama_has_them() -> None:
    assert text(LLAMA3, CALLS, RESULT, add_generation_prompt=False) == (
        f"{BEGIN}<|start_header_id|>assistant<|end_header_id|>\n\n"
        '<|python_tag|>{"name": "add", "parameters": {"a": 1}}<|eot_id|>'
        "<|start_header_id|>ipython<|end_header_id|>\n\n2<|eot_id|>"
    )


def test_arguments_that_are_no_json_stay_as_the_model_wrote_them() -> None:
    call = CALL | {"function": {"name": "add", "arguments": '{"a": 1'}}
    assert r'"arguments": "{\"a\": 1"}' in text(QWEN, CALLS | {"tool_calls": [call]})


def test_arguments_stay_strings_where_the_template_takes_strings() -> None:
    template = (
        "{% for m in messages %}{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
        "{% endfor %}"
    )
    assert text(template, USER, CALLS) == 'How are you?add{"a": 1}'


def test_results_are_rendered_with_the_name_of_the_function() -> None:
    template = (
        "{% for m in messages if m.role == 'tool' %}{{ m.name }}: {{ m.content }}{% endfor %}"
    )
    assert text(template, CALLS, RESULT) == "add: 2"
    assert text(template, CALLS, RESULT | {"name": "mine"}) == "mine: 2"
    assert text(template, RESULT) == ": 2"


def test_the_begin_token_is_not_added_twice() -> None:
    tokenizer = chatty(LLAMA3, begin=True)
    conversation = Conversation([USER])
    token_ids = asyncio.run(ChatTemplate(tokenizer).render(conversation))
    assert token_ids.count(1) == 1
    both = asyncio.run(ChatTemplate(tokenizer).render(conversation, add_special_tokens=True))
    assert both == [1, *token_ids]


PARTS = [{"type": "text", "text": "How"}, {"type": "text", "text": "are you?"}]


def test_parts_become_a_string_where_the_template_takes_strings() -> None:
    in_parts = text(CHATML, {"role": "user", "content": PARTS})
    assert in_parts == text(CHATML, {"role": "user", "content": "How\nare you?"})


def test_strings_become_parts_where_the_template_takes_parts() -> None:
    assert text(PARTS_ONLY, USER, {"role": "user", "content": PARTS}) == (
        "[user]How are you?|[user]How|are you?|"
    )


def test_the_developer_role_becomes_system_where_the_template_lacks_it() -> None:
    developer = {"role": "developer", "content": "Be brief."}
    assert text(CHATML, developer, USER).startswith("<|im_start|>system\nBe brief.")
    knows = CHATML.replace('["system"', '["developer", "system"')
    assert text(knows, developer, USER).startswith("<|im_start|>developer\n")


def test_a_continued_message_is_rendered_without_its_end() -> None:
    begun = {"role": "assistant", "content": "I am"}
    prompt = text(CHATML, USER, begun, add_generation_prompt=False, continue_final_message=True)
    assert prompt.endswith("<|im_start|>assistant\nI am")


@pytest.mark.parametrize(
    ("template", "texts", "end"),
    [
        (CHATML, [" I am "], " I am "),
        (CHATML, ["\n"], "\n"),
        (CHATML, ["I am", "", "I am"], "I am\n\nI am"),
        (LLAMA3, [" I am "], "I am"),
        (LLAMA3, [" I", "am "], "I\nam"),
        (PARTS_ONLY, ["I am"], "I am"),
        (PARTS_ONLY, [" I", "am ", "I"], " I|am |I"),
        (PARTS_ONLY.replace("part.text }}", "part.text | trim('b') }}"), ["b", "am"], "am"),
    ],
)
def test_the_continuation_is_the_end_of_the_prompt(
    template: str, texts: list[str], end: str
) -> None:
    parts = [{"type": "text", "text": text} for text in texts]
    for content in (parts, texts[0]) if len(texts) == 1 else (parts,):
        begun = {"role": "assistant", "content": content}
        goes_on = {"add_generation_prompt": False, "continue_final_message": True}
        prompt = text(template, USER, begun, **goes_on)
        assert continued(prompt, Conversation([USER, begun], **goes_on)) == end
        assert prompt.endswith(end)


def test_a_new_message_continues_nothing() -> None:
    assert continued("hi", Conversation([USER])) == ""


def test_variables_reach_the_template() -> None:
    assert text(QWEN, USER, variables={"enable_thinking": False}).endswith("</think>\n\n")


def test_the_error_has_the_templates_message() -> None:
    assert refusal(CHATML, {"role": "tool", "content": "2"}) == (
        "The chat template does not accept this conversation: I do not know the role tool."
    )


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages.x.y }}", "{% if %}", "{{ ''.__class__.__mro__ }}"]
)
def test_a_template_that_fails_is_a_refusal(template: str) -> None:
    assert "does not accept this conversation" in refusal(template, USER)


def test_a_recursive_conversation_is_nested_too_deeply() -> None:
    recursive = "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}"
    assert refusal(recursive, USER).endswith("conversation: it is nested too deeply.")


def test_a_model_without_a_template_is_an_error() -> None:
    assert "no chat template" in refusal(None, USER)


def test_an_empty_prompt_is_refused() -> None:
    template = ChatTemplate(chatty("{# nothing #}"))
    with pytest.raises(ApiError, match="to an empty prompt"):
        asyncio.run(template.render(Conversation([USER])))


def test_a_request_brings_its_own_template_only_where_that_is_trusted() -> None:
    own = "{{ messages[0].content }}!"
    assert "--trust-request-chat-template" in refusal(CHATML, USER, template=own)
    trusting = ChatTemplate(chatty(CHATML), trust_requests=True)
    assert text(trusting, USER, template=own) == "How are you?!"


def test_a_models_own_template_for_tools_is_used() -> None:
    tokenizer: Any = chatty(None)
    tokenizer.__dict__["chat_templates"] = {"default": "plain", "tool_use": "with tools"}
    template = ChatTemplate(tokenizer)
    assert text(template, USER) == "plain"
    assert text(template, USER, tools=[TOOL]) == "with tools"


class Slow(Tokenizer):
    """Renders only after it is released."""

    let = threading.Event()

    def render_chat(self, messages: Any, **arguments: Any) -> str:
        assert self.let.wait(10)
        return super().render_chat(messages, **arguments)


def test_a_template_that_does_not_end_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "RENDER_TIMEOUT_S", 0.01)
    monkeypatch.setattr(chat_template, "NUM_THREADS", 1)
    slow = chatty(CHATML)
    template = ChatTemplate(slow)
    slow.__class__ = Slow
    try:
        assert "took longer than" in refusal(template, USER, num_bytes=1_000_000)
        with pytest.raises(ApiError) as refused:
            text(template, USER, num_bytes=1_000_000)
        assert refused.value.status == 429, "it found no thread, and has taken no time"
    finally:
        Slow.let.set()


def test_a_rendering_that_is_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARACTERS", 1000)
    assert "as 2000 characters" in refusal("{{ 'x' * 2000 }}", USER)


def test_a_long_conversation_is_rendered_as_a_short_one() -> None:
    assert text(CHATML, USER, num_bytes=1_000_000) == text(CHATML, USER, num_bytes=10)


def test_the_setting_replaces_the_models_template(tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages[0].content }}?")
    template = chat_template_of(ChatConfig(chat_template=file), chatty(CHATML))
    assert text(template, USER) == "How are you??"


@pytest.mark.parametrize("content", [None, b"{% if %}", b"\xff"])
def test_a_file_that_is_no_template_fails_the_start(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "bad.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ChatTemplateError, match=r"^cannot use the chat template [^\n]*$"):
        chat_template_of(ChatConfig(chat_template=file), chatty(CHATML))
