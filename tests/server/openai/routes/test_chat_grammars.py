"""Chats that are bound to a form or to a call."""

from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher

from configs.schema.grammar_limits import MAX_GRAMMAR_BYTES, grammar_limits
from server.text.tokenizer import Tokenizer
from tests.server.grammar.grammar_readers import accepts
from tests.server.openai.chatting import CALL, OTHER, OTHER_CALL, TOOL, choice, error, submitted
from tests.server.templates import CHATML, OPENS_REASONING, QWEN, chatty, with_long_context
from tests.server.world import Daemon, generated, saying, serving
from wire.grammar_vocabulary import grammar_tokenizer
from wire.messages import Finished, Submit, ToServer

NAMED = {"type": "function", "function": {"name": "add"}}
PERSON: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {"name": "p", "schema": {"type": "object"}},
}


def accepts_whole(tokenizer: Tokenizer, grammar: str, text: str) -> bool:
    """Whether the grammar accepts the tokens with which the model writes the text."""
    reader = grammar_tokenizer(tokenizer.serialised or "", eos_token_id=0)
    matcher = LLMatcher(reader, grammar, log_level=0, limits=grammar_limits())
    token_ids = tokenizer.encode(text)
    return matcher.try_consume_tokens(token_ids) == len(token_ids) and matcher.is_accepting()


def test_a_free_answer_has_no_grammar(qwen: Daemon) -> None:
    assert submitted(qwen, tools=[TOOL]).sampling.grammar == ""
    assert submitted(qwen, response_format={"type": "text"}).sampling.grammar == ""


def test_forced_calls_follow_a_grammar(qwen: Daemon) -> None:
    tools = [TOOL, OTHER]
    qwen.engine.script = saying(CALL)
    required = submitted(qwen, tools=tools, tool_choice="required").sampling.grammar
    assert accepts(required, CALL)
    assert accepts(required, OTHER_CALL)
    assert not accepts(required, "hello")
    assert not accepts(required, OTHER_CALL.replace("{}", '{"x": 1}'))
    named = submitted(qwen, tools=tools, tool_choice=NAMED).sampling.grammar
    assert accepts(named, CALL)
    assert not accepts(named, OTHER_CALL)


@pytest.mark.parametrize(
    ("tool_choice", "parallel", "allowed"),
    [
        (NAMED, None, False),
        (NAMED, True, False),
        ("required", None, False),
        ("required", False, False),
        ("required", True, True),
    ],
)
def test_a_forced_answer_has_one_call_unless_several_are_wanted(
    qwen: Daemon, tool_choice: Any, parallel: bool | None, allowed: bool
) -> None:
    qwen.engine.script = saying(CALL)
    fields = {"tools": [TOOL], "tool_choice": tool_choice, "parallel_tool_calls": parallel}
    grammar = submitted(qwen, **fields).sampling.grammar
    assert accepts(grammar, CALL)
    assert accepts(grammar, f"{CALL}\n{CALL}") is allowed


def test_schemas_that_are_too_large_for_a_grammar_are_named_by_their_names(qwen: Daemon) -> None:
    large = {"type": "object", "properties": {"a": {"enum": ["x" * MAX_GRAMMAR_BYTES]}}}
    tools = [TOOL, {"type": "function", "function": {"name": "big", "parameters": large}}]
    found = error(qwen, tools=tools, tool_choice="required")
    assert found["param"] == "tools[1].function.parameters"
    assert found["message"] == "'tools[1].function.parameters' is larger than 256 KiB."
    half = {"type": "object", "properties": {"a": {"enum": ["x" * (MAX_GRAMMAR_BYTES // 2)]}}}
    tools = [{"type": "function", "function": {"name": name, "parameters": half}} for name in "abc"]
    assert error(qwen, tools=tools, tool_choice="required")["param"] == "tools"


def test_a_form_is_that_of_an_answer_without_calls(qwen: Daemon) -> None:
    grammar = submitted(qwen, response_format=PERSON).sampling.grammar
    assert accepts(grammar, '{"name": "Ada"}')
    assert not accepts(grammar, CALL)
    grammar = submitted(qwen, response_format=PERSON, tools=[TOOL]).sampling.grammar
    assert accepts(grammar, '{"name": "Ada"}')
    assert accepts(grammar, CALL)
    assert not accepts(grammar, "hello")
    chosen = {"structured_outputs": {"choice": ["yes", "no"]}}
    assert accepts(submitted(qwen, **chosen).sampling.grammar, "yes")


def test_reasoning_that_the_prompt_opens_comes_before_a_form(tmp_path: Path) -> None:
    script = saying('Well.\n</think>\n\n{"name": "Ada"}')
    with serving(tmp_path, script, tokenizer=chatty(OPENS_REASONING)) as daemon:
        grammar = submitted(with_long_context(daemon), response_format=PERSON).sampling.grammar
        message = choice(daemon, response_format=PERSON)["message"]
    assert accepts(grammar, 'Well.\n</think>\n\n{"name": "Ada"}')
    assert not accepts(grammar, '{"name": "Ada"}')
    assert (message["reasoning"], message["content"]) == ("Well.", '{"name": "Ada"}')


TAGS = ("<think>", "</think>")
KINDS = {"special": {"special": TAGS}, "added": {"added": TAGS}, "text": {}}
PLACES = {"opened by the prompt": OPENS_REASONING, "opened by the model": QWEN}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"response_format": PERSON}, '{"name": "Ada"}'),
        ({"tools": [TOOL], "tool_choice": NAMED}, CALL),
        ({"tools": [TOOL], "response_format": PERSON}, CALL),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, "no"),
        ({"structured_outputs": {"regex": "<[a-z]+>"}}, "<b>"),
    ],
)
def test_a_model_may_reason_before_a_form(
    tmp_path: Path, place: str, kind: str, fields: dict[str, Any], answer: str
) -> None:
    template = PLACES[place]
    tokenizer = chatty(
        template, *KINDS[kind].get("special", ()), added=KINDS[kind].get("added", ())
    )
    opened = template is OPENS_REASONING
    text = f"{'' if opened else '<think>'}Or <b>?</think>\n\n{answer}"
    with serving(tmp_path, saying(text, tokenizer), tokenizer=tokenizer) as daemon:
        grammar = submitted(with_long_context(daemon), **fields).sampling.grammar
        message = choice(daemon, **fields)["message"]
        without = submitted(daemon, chat_template_kwargs={"enable_thinking": False}, **fields)
    assert accepts_whole(tokenizer, grammar, text)
    assert not accepts_whole(tokenizer, grammar, text.replace(answer, "well"))
    assert accepts_whole(tokenizer, grammar, answer) is not opened
    if not opened:
        assert not accepts_whole(tokenizer, without.sampling.grammar, text)
        assert accepts_whole(tokenizer, without.sampling.grammar, answer)
    assert message["reasoning"] == "Or <b>?"
    if "tool_calls" in message:
        assert message["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    else:
        assert message["content"] == answer


@pytest.mark.parametrize("kind", ["special", "added"])
def test_the_reasoning_can_be_limited(tmp_path: Path, kind: str) -> None:
    tokenizer = chatty(
        OPENS_REASONING, *KINDS[kind].get("special", ()), added=KINDS[kind].get("added", ())
    )
    with serving(tmp_path, saying("a</think>b", tokenizer), tokenizer=tokenizer) as daemon:
        with_long_context(daemon)
        free = submitted(daemon, thinking_token_budget=3).sampling.grammar
        none = submitted(daemon, thinking_token_budget=0).sampling.grammar
        form = submitted(daemon, thinking_token_budget=3, response_format=PERSON).sampling.grammar
        default = submitted(daemon, max_tokens=9, response_format=PERSON).sampling.grammar
        assert submitted(daemon).sampling.grammar == ""
    assert accepts_whole(tokenizer, free, "abc</think>Any text.")
    assert not accepts_whole(tokenizer, free, "abcd</think>Any text.")
    assert accepts_whole(tokenizer, none, "</think>Any text.")
    assert not accepts_whole(tokenizer, none, "a</think>Any text.")
    assert accepts_whole(tokenizer, form, "abc</think>{}")
    assert not accepts_whole(tokenizer, form, "abcd</think>{}")
    assert accepts_whole(tokenizer, default, "abcd</think>{}")
    assert not accepts_whole(tokenizer, default, "abcde</think>{}")


def test_reasoning_with_an_end_of_several_tokens_cannot_be_limited(tmp_path: Path) -> None:
    with serving(tmp_path, tokenizer=chatty(OPENS_REASONING)) as daemon:
        found = error(with_long_context(daemon), thinking_token_budget=3)
    assert found["param"] == "thinking_token_budget"
    assert "several tokens" in found["message"]


def test_reasoning_does_not_hide_that_a_form_is_none(tmp_path: Path) -> None:
    with serving(tmp_path, tokenizer=chatty(OPENS_REASONING)) as daemon:
        found = error(with_long_context(daemon), structured_outputs={"grammar": "root ::= "})
    assert "matches nothing but the empty text" in found["message"]


def test_a_forced_call_of_a_special_token_is_read(tmp_path: Path) -> None:
    tokenizer = chatty(QWEN, "<tool_call>", "</tool_call>")
    written = tokenizer.encode(CALL)

    def script(submit: Submit) -> list[ToServer]:
        tokens = (generated(submit.sequence_id, id_) for id_ in written)
        return [*tokens, Finished(submit.sequence_id, "stop")]

    with serving(tmp_path, script, tokenizer=tokenizer) as daemon:
        submit = submitted(with_long_context(daemon), tools=[TOOL], tool_choice="required")
        found = choice(daemon, tools=[TOOL], tool_choice="required")
    assert f"<[{written[0]}]>" in submit.sampling.grammar
    assert found["message"]["tool_calls"][0]["function"]["name"] == "add"


def test_a_model_of_unknown_format_can_be_made_to_call(tmp_path: Path) -> None:
    with serving(tmp_path, saying(CALL), tokenizer=chatty(CHATML)) as daemon:
        found = choice(with_long_context(daemon), tools=[TOOL], tool_choice=NAMED)
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
