"""Chats that are bound to a form or to a call."""

from pathlib import Path

from configs.grammar_limits import MAX_GRAMMAR_BYTES
from tests.server.grammar.grammar_readers import accepts, rules_of
from tests.server.openai.chatting import CALL, OTHER, OTHER_CALL, TOOL, choice, error, submitted
from tests.server.templates import CHATML, OPENS_REASONING, QWEN, chatty, with_long_context
from tests.server.world import Daemon, generated, saying, serving
from wire.messages import Finished, Submit, ToServer

NAMED = {"type": "function", "function": {"name": "add"}}
PERSON = {"type": "json_schema", "json_schema": {"name": "p", "schema": {"type": "object"}}}


def test_a_free_answer_has_no_grammar(qwen: Daemon) -> None:
    assert submitted(qwen, tools=[TOOL]).sampling.grammar == ""
    assert submitted(qwen, response_format={"type": "text"}).sampling.grammar == ""


def test_forced_calls_follow_a_grammar(qwen: Daemon) -> None:
    tools = [TOOL, OTHER]
    qwen.engine.script = saying(CALL)
    required = submitted(qwen, tools=tools, tool_choice="required").sampling.grammar
    assert accepts(required, CALL)
    assert accepts(
        required, CALL.replace("add", "get_time").replace('{"a": 1}', "{}") + "\n" + CALL
    )
    assert not accepts(required, "hello")
    assert not accepts(required, OTHER_CALL.replace("{}", '{"x": 1}'))
    named = submitted(qwen, tools=tools, tool_choice=NAMED).sampling.grammar
    assert accepts(named, CALL)
    assert not accepts(named, OTHER_CALL)
    once = {"tool_choice": "required", "parallel_tool_calls": False}
    assert not accepts(submitted(qwen, tools=tools, **once).sampling.grammar, f"{CALL}\n{CALL}")


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
    assert f"<[{written[0]}]>" in rules_of(submit.sampling.grammar)
    assert found["message"]["tool_calls"][0]["function"]["name"] == "add"


def test_a_model_of_unknown_format_can_be_made_to_call(tmp_path: Path) -> None:
    with serving(tmp_path, saying(CALL), tokenizer=chatty(CHATML)) as daemon:
        found = choice(with_long_context(daemon), tools=[TOOL], tool_choice=NAMED)
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
