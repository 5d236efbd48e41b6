"""POST /v1/responses: what the engine is asked, golden bodies, and streams that add up to them."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from server.openai.fields import responses_answer
from server.openai.rendering.response_output import ResponseOutput
from tests.server.grammar.grammar_readers import accepts
from tests.server.openai.chatting import CALL, OTHER_CALL, prompt_of
from tests.server.openai.responding import OTHER, TOOL, post, stream, summed, whole
from tests.server.openai.routes.test_completion_logprobs import logprobs
from tests.server.openai.routes.test_generation_response import failing
from tests.server.templates import OPENS_REASONING, chatty, with_long_context
from tests.server.world import MODEL, TOKENIZER, Daemon, generated, saying, serving
from wire.messages import Abort, Finished, Generated, Submit, ToServer

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
SETTINGS = {
    "background": False,
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "metadata": {},
    "model": MODEL,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
}


def without_ids(items: list[Any]) -> list[Any]:
    """Items without what is different each time; every id must have the prefix of its kind."""
    prefixes = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}
    kept = []
    for item in items:
        assert item["id"].startswith(prefixes[item["type"]])
        assert item.get("call_id", "call_").startswith("call_")
        kept.append({key: item[key] for key in item if key not in ("id", "call_id")})
    return kept


def text(message: str, status: str = "completed") -> dict[str, Any]:
    part = {"type": "output_text", "text": message, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "status": status, "content": [part]}


def thought(reasoning: str, status: str = "completed") -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": reasoning}
    item = {"type": "reasoning", "summary": [], "encrypted_content": None, "status": status}
    return item | {"content": [part]}


def call(name: str, arguments: str, status: str = "completed") -> dict[str, Any]:
    head = {"type": "function_call", "status": status}
    return head | {"name": name, "arguments": arguments}


def submitted(daemon: Daemon, **body: Any) -> Submit:
    """What the engine received for one request."""
    before = len(daemon.engine.wait_for(Submit, 0))
    whole(daemon, **body)
    (submit,) = daemon.engine.wait_for(Submit, before + 1)[before:]
    return submit


def test_the_answer_has_openais_shape(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello world €")
    body = whole(qwen)
    assert body.pop("id").startswith("resp_")
    assert isinstance(body.pop("created_at"), int)
    assert isinstance(body.pop("completed_at"), int)
    assert without_ids(body.pop("output")) == [text("hello world €")]
    assert body == SETTINGS | {
        "object": "response",
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "usage": {
            "input_tokens": 52,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 7,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 59,
        },
    }


def test_the_settings_are_returned_as_they_were_applied(qwen: Daemon) -> None:
    qwen.engine.script = saying('{"a": 1}')
    given = {
        "instructions": "Be brief.",
        "max_output_tokens": 99,
        "max_tool_calls": 3,
        "metadata": {"a": "b"},
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "user": "u",
        "temperature": 0.5,
        "top_p": 0.25,
        "tools": [TOOL | {"description": "Adds."}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [named("add")]},
        "service_tier": "flex",
        "text": {
            "format": {"type": "json_schema", "name": "x", "schema": SCHEMA, "strict": True},
            "verbosity": "low",
        },
    }
    body = whole(qwen, **given)
    assert {key: body[key] for key in given} == given
    body = whole(
        qwen,
        reasoning={"effort": "none", "summary": "auto"},
        service_tier="priority",
        truncation="auto",
        store=True,
        include=["reasoning.encrypted_content"],
    )
    assert body["reasoning"] == {"effort": "none", "summary": None}
    assert (body["service_tier"], body["truncation"], body["store"]) == (
        "default",
        "disabled",
        False,
    )


def named(name: str) -> dict[str, str]:
    return {"type": "function", "name": name}


CASES: dict[str, tuple[str, dict[str, Any], list[Any]]] = {
    "text": ("hello", {}, [text("hello")]),
    "nothing": ("", {}, [text("")]),
    "reasoning": (
        "<think>\nWell, €.\n</think>\n\nhello",
        {},
        [thought("Well, €."), text("hello")],
    ),
    "a call": (CALL, {"tools": [TOOL]}, [call("add", '{"a": 1}')]),
    "all": (
        f"<think>Well.</think>\n\nhello\n{CALL}\n{OTHER_CALL}",
        {"tools": [TOOL, OTHER]},
        [thought("Well."), text("hello"), call("add", '{"a": 1}'), call("get_time", "{}")],
    ),
    "one call of two": (
        f"{CALL}\n{OTHER_CALL}",
        {"tools": [TOOL, OTHER], "parallel_tool_calls": False},
        [call("add", '{"a": 1}')],
    ),
    "no call": (CALL, {"tools": [TOOL], "tool_choice": "none"}, [text(CALL)]),
    "a forced call": (
        CALL,
        {"tools": [TOOL, OTHER], "tool_choice": named("add")},
        [call("add", '{"a": 1}')],
    ),
    "a required call": (
        CALL,
        {"tools": [TOOL, OTHER], "tool_choice": "required"},
        [call("add", '{"a": 1}')],
    ),
    "a stop string": ("hello world", {"stop": "wor"}, [text("hello ")]),
    "a form": ('{"a": 1}', {"text": {"format": {"type": "json_object"}}}, [text('{"a": 1}')]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_stream_adds_up_to_the_whole_answer(qwen: Daemon, case: str) -> None:
    said, body, items = CASES[case]
    qwen.engine.script = saying(said)
    answer = whole(qwen, **body)
    assert without_ids(answer["output"]) == items
    assert answer["status"] == "completed"
    created, in_progress, *events, completed = stream(qwen, **body)
    assert [created["type"], in_progress["type"], completed["type"]] == [
        "response.created",
        "response.in_progress",
        "response.completed",
    ]
    begun = answer | {"status": "in_progress", "output": [], "usage": None, "completed_at": None}
    ids = {key: created["response"][key] for key in ("id", "created_at")}
    assert created["response"] == in_progress["response"] == begun | ids
    assert without_ids(summed(events)) == items
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert completed["response"]["output"] == done
    assert completed["response"]["usage"] == answer["usage"]
    for event in (created, in_progress, *events, completed):
        responses_answer.ResponseStreamEvent.model_validate(event, extra="forbid")
    responses_answer.ResponseObject.model_validate(answer, extra="forbid")


@pytest.mark.parametrize(
    ("said", "limit", "items"),
    [
        ("hello world", 1, [text("hello", "incomplete")]),
        ("<think>Well then", len(TOKENIZER.encode("<think>Well")), [thought("Well", "incomplete")]),
        (CALL, 44, [call("add", '{"a"', "incomplete")]),
    ],
)
def test_an_answer_that_was_cut_off_is_incomplete(
    qwen: Daemon, said: str, limit: int, items: list[Any]
) -> None:
    qwen.engine.script = saying(said)
    body = {"max_output_tokens": limit, "tools": [TOOL]}
    answer = whole(qwen, **body)
    assert (answer["status"], answer["completed_at"]) == ("incomplete", None)
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in answer["output"]] == ["incomplete"]
    _, _, *events, last = stream(qwen, **body)
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert without_ids(summed(events)) == without_ids(answer["output"])
    assert without_ids(answer["output"]) == items


def test_input_is_the_conversation_of_chat(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello")
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "1+2?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [], "encrypted_content": "x"},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [
                {"type": "output_text", "text": "Sure.", "annotations": [], "logprobs": []}
            ],
        },
        {
            "type": "function_call",
            "id": "fc_1",
            "call_id": "call_1",
            "name": "add",
            "arguments": '{"a": 1}',
            "status": "completed",
        },
        {
            "type": "function_call",
            "call_id": "call_2",
            "name": "add",
            "arguments": '{"a": 2}',
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "one"},
        {
            "type": "function_call_output",
            "call_id": "call_2",
            "output": [{"type": "input_text", "text": "two"}],
            "status": "completed",
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Why?"},
    ]
    prompt = prompt_of(submitted(qwen, instructions="Be brief.", input=items))
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\n1+2?<|im_end|>\n"
        "<|im_start|>assistant\nSure."
        '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
        '<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>one</tool_response><|im_end|>\n"
        "<|im_start|>user\n<tool_response>two</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_an_answer_can_be_sent_back(qwen: Daemon) -> None:
    qwen.engine.script = saying(f"<think>Well.</think>\n\nhello {CALL}")
    items: list[Any] = [{"role": "user", "content": "hi"}]
    items += whole(qwen, input=items, tools=[TOOL])["output"]
    output = {"type": "function_call_output", "call_id": items[-1]["call_id"], "output": "2"}
    prompt = prompt_of(submitted(qwen, input=[*items, output], tools=[TOOL]))
    assert "<|im_start|>assistant\nhello<tool_call>" in prompt
    assert "<tool_response>2</tool_response>" in prompt


def test_the_settings_reach_the_engine_and_the_template(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello")
    sampling = {"temperature": 0, "top_p": 0.5, "top_k": 7, "seed": 3, "presence_penalty": 1}
    submit = submitted(qwen, **sampling, max_output_tokens=9, service_tier="flex")
    asked = submit.sampling
    assert (asked.temperature, asked.top_p, asked.top_k, asked.seed) == (0.0, 0.5, 7, 3)
    assert (asked.presence_penalty, submit.max_tokens, submit.offline) == (1.0, 9, True)
    for body in (
        {"reasoning": {"effort": "none"}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        assert prompt_of(submitted(qwen, **body)).endswith("<think>\n\n</think>\n\n")
    form = {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}
    grammar = submitted(qwen, text=form).sampling.grammar
    assert '"a"' in grammar
    forced = submitted(qwen, tools=[TOOL], tool_choice="required").sampling.grammar
    assert "tool_call" in forced
    one, two = (f"{CALL}\n" * count for count in (1, 2))
    assert accepts(forced, one.strip())
    assert not accepts(forced, two.strip())
    several = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": True}
    assert accepts(submitted(qwen, **several).sampling.grammar, two.strip())


def test_reasoning_that_the_prompt_opens_is_an_item(tmp_path: Path) -> None:
    said = saying("Well.</think>\n\nhello")
    with serving(tmp_path, said, tokenizer=chatty(OPENS_REASONING)) as daemon:
        with_long_context(daemon)
        answer = whole(daemon)
        assert without_ids(answer["output"]) == [thought("Well."), text("hello")]
        assert answer["usage"]["output_tokens_details"]["reasoning_tokens"] > 0


def test_log_probabilities_are_those_of_the_messages_tokens(qwen: Daemon) -> None:
    token_ids = TOKENIZER.encode(f"<think>Well.</think>\n\nhello € world {CALL}")
    qwen.engine.script = partial(scored, [*token_ids, 0])
    body = {"tools": [TOOL], "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = whole(qwen, **body)
    _, message, _ = answer["output"]
    (part,) = message["content"]
    spelt = b"".join(bytes(token["bytes"]) for token in part["logprobs"]).decode()
    assert part["text"] == "hello € world"
    assert spelt.strip() == part["text"]
    assert all(len(token["top_logprobs"]) == 2 for token in part["logprobs"])
    _, _, *events, _ = stream(qwen, **body)
    assert summed(events)[1]["content"] == message["content"]
    without = whole(qwen, tools=[TOOL], top_logprobs=2)
    assert without["output"][1]["content"][0]["logprobs"] == []


def scored(token_ids: list[int], submit: Submit) -> list[ToServer]:
    """A script: these tokens step by step, and log-probabilities if they are asked for."""
    id_, out = submit.sequence_id, list[ToServer]()
    likeliest = [(5, -0.5), (6, -1.5)][: submit.sampling.num_logprobs]
    for token_id in token_ids:
        message = generated(id_, token_id)
        if submit.sampling.num_logprobs >= 0:
            reported = logprobs([0], likeliest)
            message = Generated(message.sequence_ids, message.token_ids, reported)
        out.append(message)
    return [*out, Finished(id_, "stop")]


def test_a_failure_in_a_stream_is_an_error_and_a_failed_response(qwen: Daemon) -> None:
    qwen.engine.script = failing
    *_, error, failed = stream(qwen)
    assert error.pop("sequence_number") == failed["sequence_number"] - 1
    assert error == {
        "type": "error",
        "code": "internal_error",
        "message": "The pipeline was lost.",
        "param": None,
    }
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"] == {
        "code": "server_error",
        "message": "The pipeline was lost.",
    }
    response = post(qwen)
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "The pipeline was lost."


def test_a_bug_in_a_stream_fails_the_response(
    qwen: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    qwen.engine.script = saying("hello")
    monkeypatch.setattr(ResponseOutput, "push", broken)
    assert [event["type"] for event in stream(qwen)][-2:] == ["error", "response.failed"]


def test_a_client_that_leaves_ends_its_generation(qwen: Daemon) -> None:
    qwen.engine.script = lambda _: []
    before = len(qwen.engine.wait_for(Abort, 0))
    body = {"model": MODEL, "input": "hi", "stream": True}
    with qwen.http.stream("POST", f"{qwen.url}/v1/responses", json=body) as response:
        assert next(response.iter_lines()) == "event: response.created"
    qwen.engine.wait_for(Abort, before + 1)


def test_requests_are_logged_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    said = saying("hello")
    with serving(tmp_path, said, tokenizer=chatty(OPENS_REASONING), log_requests=True) as daemon:
        with_long_context(daemon)
        reply_id = whole(daemon)["id"]
        stream(daemon)
        # The second one is counted after its client has read the end.
        counted = 'tdpipe_requests_total{model_name="little",outcome="success"} 2.0'
        daemon.wait_until(lambda: counted in daemon.get("/metrics").text)
    assert f" {reply_id} prompts=1 " in caplog.text
    assert "POST /v1/responses 200" in caplog.text
