"""What of a chat's answer is content, reasoning and calls, and which tools are shown."""

from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.server.openai.chatting import (
    CALL,
    OTHER,
    TOOL,
    choice,
    post,
    prompt_of,
    stream,
    submitted,
    summed,
)
from tests.server.templates import (
    LLAMA3,
    MISTRAL,
    OPENS_REASONING,
    QWEN,
    chatty,
    with_long_context,
)
from tests.server.world import TOKENIZER, Daemon, generated, saying, serving
from wire.messages import Finished, Submit, ToServer


@pytest.mark.parametrize(
    ("text", "message", "reason"),
    [
        ("hello world €", {"content": "hello world €"}, "stop"),
        (
            "<think>\nWell.\n</think>\n\nhello",
            {"content": "hello", "reasoning_content": "Well.", "reasoning": "Well."},
            "stop",
        ),
        (CALL, {"content": None, "calls": [("add", '{"a": 1}')]}, "tool_calls"),
        (
            f"<think>Well.</think>I add.\n{CALL}\n{CALL}",
            {
                "content": "I add.",
                "reasoning_content": "Well.",
                "reasoning": "Well.",
                "calls": [("add", '{"a": 1}')] * 2,
            },
            "tool_calls",
        ),
        ("<tool_call>add(1)</tool_call>", {"content": "<tool_call>add(1)</tool_call>"}, "stop"),
        (
            "<think>and on",
            {"content": None, "reasoning_content": "and on", "reasoning": "and on"},
            "stop",
        ),
    ],
    ids=["content", "reasoning", "call", "all", "no-call", "unfinished"],
)
def test_a_message_is_the_same_whole_and_streamed(
    qwen: Daemon, text: str, message: dict[str, Any], reason: str
) -> None:
    qwen.engine.script = saying(text)
    for found in (choice(qwen, tools=[TOOL]), summed(stream(qwen, tools=[TOOL]))):
        assert found["finish_reason"] == reason
        reported = found["message"]
        assert reported.pop("role") == "assistant"
        reported.pop("refusal", None), reported.pop("annotations", None)
        calls = reported.pop("tool_calls", [])
        reported["content"] = reported["content"] or None
        expected = dict(message)
        expected_calls = expected.pop("calls", [])
        assert reported == expected
        assert [tuple(call["function"].values()) for call in calls] == expected_calls
        assert all(call["id"].startswith("call_") for call in calls)
        assert len({call["id"] for call in calls}) == len(calls)


def test_a_call_that_is_cut_off_ends_by_length(qwen: Daemon) -> None:
    qwen.engine.script = saying(CALL)
    found = choice(qwen, tools=[TOOL], max_tokens=50)
    assert found["finish_reason"] == "length"
    assert CALL[len("<tool_call>") :].find("{") > 0
    assert found["message"]["tool_calls"][0]["function"]["name"] == "add"


@pytest.mark.parametrize("stop", [{"stop": "1"}, {"stop": ["}}"]}, {"stop_token_ids": [None]}])
def test_a_stop_within_a_call_leaves_no_call(qwen: Daemon, stop: dict[str, Any]) -> None:
    qwen.engine.script = saying(CALL)
    if "stop_token_ids" in stop:
        stop = {"stop_token_ids": TOKENIZER.encode("1")}
    for found in (choice(qwen, tools=[TOOL], **stop), summed(stream(qwen, tools=[TOOL], **stop))):
        assert found["finish_reason"] == "stop"
        assert "tool_calls" not in found["message"]
        assert CALL.startswith(found["message"]["content"])
    forced = choice(qwen, tools=[TOOL], tool_choice="required", **stop)
    assert (forced["finish_reason"], forced["message"]["content"]) == ("stop", "")


def test_a_stop_string_after_a_call_leaves_the_call(qwen: Daemon) -> None:
    qwen.engine.script = saying(f"{CALL}\nOver.")
    for found in (
        choice(qwen, tools=[TOOL], stop="Over"),
        summed(stream(qwen, tools=[TOOL], stop="Over")),
    ):
        assert found["finish_reason"] == "tool_calls"
        assert found["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


@pytest.mark.parametrize("num_tokens", [1, 15, 24, 36])
def test_what_is_cut_off_before_a_forced_call_is_one_is_not_said(
    qwen: Daemon, num_tokens: int
) -> None:
    """The last cut is behind the arguments' key."""
    qwen.engine.script = saying(CALL)
    body = {"tools": [TOOL], "tool_choice": "required", "max_tokens": num_tokens}
    for found in (choice(qwen, **body), summed(stream(qwen, **body))):
        assert found["finish_reason"] == "length"
        assert found["message"]["content"] == ""
        assert "tool_calls" not in found["message"]
    free = choice(qwen, tools=[TOOL], max_tokens=15)["message"]["content"]
    assert CALL.startswith(free)
    assert free.startswith("<tool_call>")


def test_only_one_call_comes_where_several_are_not_wanted(qwen: Daemon) -> None:
    qwen.engine.script = saying(CALL + CALL)
    found = choice(qwen, tools=[TOOL], parallel_tool_calls=False)
    assert len(found["message"]["tool_calls"]) == 1


def test_reasoning_is_left_out_where_it_is_not_wanted(qwen: Daemon) -> None:
    qwen.engine.script = saying("<think>Well.</think>hello")
    assert "reasoning" not in choice(qwen, include_reasoning=False)["message"]
    found = summed(stream(qwen, include_reasoning=False))
    assert found["message"] == {"role": "assistant", "content": "hello"}


def test_tools_are_shown_unless_none_may_be_called(qwen: Daemon) -> None:
    qwen.engine.script = saying(CALL)
    assert '"name": "add"' in prompt_of(submitted(qwen, tools=[TOOL]))
    assert '"name": "add"' not in prompt_of(submitted(qwen, tools=[TOOL], tool_choice="none"))
    assert choice(qwen, tools=[TOOL], tool_choice="none")["message"]["content"] == CALL


def test_only_allowed_tools_are_shown(qwen: Daemon) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "add"}}]}
    prompt = prompt_of(
        submitted(
            qwen,
            tools=[TOOL, OTHER],
            tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        )
    )
    assert '"add"' in prompt
    assert "get_time" not in prompt


def test_reasoning_that_the_prompt_opens_is_reasoning(tmp_path: Path) -> None:
    script = saying("Well.\n</think>\n\nhello")
    with serving(tmp_path, script, tokenizer=chatty(OPENS_REASONING)) as daemon:
        message = choice(with_long_context(daemon))["message"]
    assert (message["reasoning"], message["content"]) == ("Well.", "hello")


@pytest.mark.parametrize(
    ("template", "reasoning"), [(QWEN, "<think>Well.</think>"), (OPENS_REASONING, "Well.</think>")]
)
def test_the_usage_returns_the_tokens_of_reasoning(
    tmp_path: Path, template: str, reasoning: str
) -> None:
    with serving(tmp_path, saying(f"{reasoning}hello"), tokenizer=chatty(template)) as daemon:
        with_long_context(daemon)
        whole = post(daemon, n=2).json()["usage"]
        *_, last = stream(daemon, n=2, stream_options={"include_usage": True})
    reported = whole["completion_tokens_details"]["reasoning_tokens"]
    assert reported == 2 * len(TOKENIZER.encode(reasoning))
    assert reported < whole["completion_tokens"]
    assert last["usage"] == whole


def test_the_usage_is_silent_on_reasoning_that_is_not_parsed(daemon: Daemon) -> None:
    assert "completion_tokens_details" not in daemon.complete().json()["usage"]


def test_calls_begin_with_a_special_token_in_llama(tmp_path: Path) -> None:
    tokenizer = chatty(LLAMA3, "<|python_tag|>")
    written = '<|python_tag|>{"name": "add", "parameters": {"a": 1}}'

    def script(submit: Submit) -> list[ToServer]:
        tokens = (generated(submit.sequence_id, id_) for id_ in tokenizer.encode(written))
        return [*tokens, Finished(submit.sequence_id, "stop")]

    with serving(tmp_path, script, tokenizer=tokenizer) as daemon:
        found = choice(with_long_context(daemon), tools=[TOOL])
        without = choice(daemon)
    assert found["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert found["message"]["content"] is None
    assert without["message"]["content"] == '{"name": "add", "parameters": {"a": 1}}'


def test_mistrals_calls_are_read_and_sent_back_by_short_identifiers(tmp_path: Path) -> None:
    tokenizer = chatty(MISTRAL, "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    written = '[TOOL_CALLS]add[ARGS]{"a": 1}'
    fields: dict[str, Any] = {"tools": [TOOL], "tool_choice": "required"}
    with serving(tmp_path, saying(written, tokenizer), tokenizer=tokenizer) as daemon:
        found = choice(with_long_context(daemon), **fields)
        (call,) = found["message"]["tool_calls"]
        long_call = call | {"id": "call_0123456789"}
        for sent in (call, long_call):
            messages = [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": None, "tool_calls": [sent]},
                {"role": "tool", "tool_call_id": sent["id"], "content": "7"},
            ]
            submit = submitted(daemon, messages=messages, tools=[TOOL])
            prompt = tokenizer.decode(
                array("i", submit.prompt_token_ids).tolist(), skip_special_tokens=False
            )
            before, _, after = prompt.partition("[CALL_ID]")
            assert before.endswith("[TOOL_CALLS]add")
            used = after[:9]
            assert used.isalnum()
            assert f"[TOOL_RESULTS]{used}[TOOL_CONTENT]7" in after
            assert (used == sent["id"]) == (sent is call)
    assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_parsers_can_be_chosen(tmp_path: Path) -> None:
    script = saying(f"<think>Well.</think>{CALL}")
    settings = {"tool_call_parser": "none", "reasoning_parser": "none"}
    with serving(tmp_path, script, tokenizer=chatty(QWEN), **settings) as daemon:
        message = choice(with_long_context(daemon), tools=[TOOL])["message"]
    assert message["content"] == f"<think>Well.</think>{CALL}"
