"""POST /v1/chat/completions: what the engine is asked, and the answers' golden bodies."""

import asyncio
import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.messages import EngineReady, Finished, Generated, Submit, ToServer
from server.chat import Chat
from server.chat_template import ChatTemplate
from server.engine_client import EngineClient
from server.generation import Generations
from server.grammars import Grammars
from server.length_predictor import LengthPredictor
from server.metrics import Metrics
from server.planner import Planner
from tests.server.grammar_readers import accepts, rules_of
from tests.server.templates import (
    CHATML,
    LLAMA3,
    OPENS_REASONING,
    QWEN,
    chatty,
    give_room,
)
from tests.server.test_completion_logprobs import logprobs, scripted
from tests.server.world import (
    MODEL,
    TOKENIZER,
    Daemon,
    config,
    events,
    generated,
    saying,
    serving,
    stats,
)

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "get_time"}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
OTHER_CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("qwen")
    with serving(folder, saying("hello world €"), tokenizer=chatty(QWEN)) as daemon:
        yield give_room(daemon)


def post(daemon: Daemon, **body: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}]
    url = f"{daemon.url}/v1/chat/completions"
    return daemon.http.post(url, json={"model": MODEL, "messages": messages} | body)


def choice(daemon: Daemon, **body: Any) -> Any:
    """The one choice of a whole answer."""
    response = post(daemon, **body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return choice


def stream(daemon: Daemon, **body: Any) -> list[Any]:
    """The events of a stream."""
    response = post(daemon, stream=True, **body)
    assert response.status_code == 200, response.text
    return events(response)


def summed(chunks: list[Any]) -> dict[str, Any]:
    """A stream's one choice as a whole answer has it."""
    message: dict[str, Any] = {"content": ""}
    ending: dict[str, Any] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            delta = part["delta"]
            message["role"] = delta.get("role", message.get("role"))
            for field in ("content", "reasoning_content", "reasoning"):
                if field in delta:
                    message[field] = message.get(field, "") + delta[field]
            for call in delta.get("tool_calls", []):
                calls = message.setdefault("tool_calls", [])
                if "id" in call:
                    assert call.pop("index") == len(calls)
                    calls.append(call)
                else:
                    function = calls[call["index"]]["function"]
                    function["arguments"] += call["function"]["arguments"]
            ending |= {key: part[key] for key in ("finish_reason", "stop_reason") if key in part}
    return {"message": message} | ending


def submitted(daemon: Daemon, **body: Any) -> Submit:
    """What the engine received for one request."""
    before = len(daemon.engine.wait_for(Submit, 0))
    assert post(daemon, **body).status_code == 200
    (submit,) = daemon.engine.wait_for(Submit, before + 1)[before:]
    assert isinstance(submit, Submit)
    return submit


def prompt_of(submit: Submit) -> str:
    return TOKENIZER.decode(array("i", submit.prompt_token_ids).tolist())


def error(daemon: Daemon, **body: Any) -> dict[str, Any]:
    response = post(daemon, **body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def test_the_answer_has_openais_shape(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello world €")
    body = post(qwen).json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("system_fingerprint").startswith("fp_")
    assert isinstance(body.pop("created"), int)
    assert body == {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "hello world €",
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ],
        "usage": {"prompt_tokens": 52, "completion_tokens": 7, "total_tokens": 59},
    }


def test_a_stream_begins_with_the_role_and_ends_with_the_reason(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello world")
    first, *chunks = stream(qwen)
    head = {key: first.pop(key) for key in ("id", "created", "model", "system_fingerprint")}
    assert first == {
        "object": "chat.completion.chunk",
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": ""},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
    }
    for chunk in chunks:
        assert chunk | head == chunk
    texts = [chunk["choices"][0]["delta"].pop("content", "") for chunk in chunks]
    assert "".join(texts) == "hello world"
    nothing = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": None}
    *others, last = [chunk["choices"] for chunk in chunks]
    assert others == [[nothing]] * len(others)
    assert last == [nothing | {"finish_reason": "stop", "stop_reason": None}]


def test_a_stream_tells_its_usage_last_where_it_is_asked_for(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello")
    *chunks, last = stream(qwen, stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + 2


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
        told = found["message"]
        assert told.pop("role") == "assistant"
        told.pop("refusal", None), told.pop("annotations", None)
        calls = told.pop("tool_calls", [])
        told["content"] = told["content"] or None
        expected = dict(message)
        expected_calls = expected.pop("calls", [])
        assert told == expected
        assert [tuple(call["function"].values()) for call in calls] == expected_calls
        assert all(call["id"].startswith("call_") for call in calls)
        assert len({call["id"] for call in calls}) == len(calls)


def test_a_call_that_is_cut_off_ends_by_length(qwen: Daemon) -> None:
    qwen.engine.script = saying(CALL)
    found = choice(qwen, tools=[TOOL], max_tokens=50)
    assert found["finish_reason"] == "length"
    assert CALL[len("<tool_call>") :].find("{") > 0
    assert found["message"]["tool_calls"][0]["function"]["name"] == "add"


def test_only_one_call_comes_where_several_are_not_wanted(qwen: Daemon) -> None:
    qwen.engine.script = saying(CALL + CALL)
    found = choice(qwen, tools=[TOOL], parallel_tool_calls=False)
    assert len(found["message"]["tool_calls"]) == 1


def test_reasoning_is_left_out_where_it_is_not_wanted(qwen: Daemon) -> None:
    qwen.engine.script = saying("<think>Well.</think>hello")
    assert "reasoning" not in choice(qwen, include_reasoning=False)["message"]
    found = summed(stream(qwen, include_reasoning=False))
    assert found["message"] == {"role": "assistant", "content": "hello"}


def test_choices_are_told_by_their_index(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello")
    found = post(qwen, n=3).json()["choices"]
    assert [(c["index"], c["message"]["content"]) for c in found] == [
        (i, "hello") for i in range(3)
    ]
    chunks = stream(qwen, n=3)
    roles = [c["choices"][0]["index"] for c in chunks if "role" in c["choices"][0]["delta"]]
    assert roles == [0, 1, 2]


def test_an_answer_may_be_as_long_as_there_is_room(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello")
    submit = submitted(qwen)
    assert submit.max_tokens == 8192 - len(submit.prompt_token_ids) // 4
    assert submitted(qwen, max_tokens=9).max_tokens == 9
    assert submitted(qwen, max_tokens=9, max_completion_tokens=7).max_tokens == 7


def test_the_sampling_fields_reach_the_engine(qwen: Daemon) -> None:
    submit = submitted(qwen, temperature=0, top_k=7, min_p=0.1, presence_penalty=1, seed=3)
    sampling = submit.sampling
    assert (sampling.temperature, sampling.top_k, sampling.min_p) == (0.0, 7, 0.1)
    assert (sampling.presence_penalty, sampling.seed, submit.offline) == (1.0, 3, False)


def test_flex_gives_way_and_is_told(qwen: Daemon) -> None:
    assert submitted(qwen, service_tier="flex").offline
    assert post(qwen, service_tier="flex").json()["service_tier"] == "flex"
    assert post(qwen, service_tier="auto").json()["service_tier"] == "default"
    assert "service_tier" not in post(qwen).json()


def test_a_batchs_request_gives_way(tmp_path: Path) -> None:
    settings = config(tmp_path)
    client, tokenizer = EngineClient(settings.server_address), chatty(QWEN)
    client.ready, client.stats = EngineReady(2, 40, 16, 8192), stats()
    metrics = Metrics(client)
    predictor = LengthPredictor(settings, metrics)
    chat = Chat(
        settings,
        client,
        tokenizer,
        ChatTemplate(tokenizer),
        Planner(settings, client, tokenizer),
        Generations(client, tokenizer, metrics, predictor, 1),
        Grammars(tokenizer),
    )
    body = json.dumps({"model": MODEL, "messages": [USER]}).encode()

    async def submitted() -> list[bool]:
        sent: list[Submit] = []
        receiving = asyncio.create_task(client.run())
        await asyncio.sleep(0)  # once begun, it closes its socket at its end
        client.submit = lambda message, _: sent.append(message)  # type: ignore[method-assign]
        for offline in (True, False):
            async with (await chat.prepare(body, offline=offline)).generation:
                pass
        receiving.cancel()
        await asyncio.wait([receiving])
        return [message.offline for message in sent]

    assert asyncio.run(submitted()) == [True, False]


def test_the_prompt_is_what_the_template_makes(qwen: Daemon) -> None:
    assert prompt_of(submitted(qwen)) == ("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    without = prompt_of(submitted(qwen, chat_template_kwargs={"enable_thinking": False}))
    assert without.endswith("<think>\n\n</think>\n\n")
    assert prompt_of(submitted(qwen, reasoning_effort="none")) == without


def test_the_last_message_goes_on(qwen: Daemon) -> None:
    qwen.engine.script = saying(" world")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    body = {"messages": messages, "continue_final_message": True}
    assert prompt_of(submitted(qwen, **body)).endswith("assistant\nhello")
    assert choice(qwen, **body)["message"]["content"] == " world"
    assert choice(qwen, **body, echo=True)["message"]["content"] == "hello world"
    assert summed(stream(qwen, **body, echo=True))["message"]["content"] == "hello world"


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
        message = choice(give_room(daemon))["message"]
    assert (message["reasoning"], message["content"]) == ("Well.", "hello")


def test_calls_begin_with_a_special_token_in_llama(tmp_path: Path) -> None:
    tokenizer = chatty(LLAMA3, "<|python_tag|>")
    written = '<|python_tag|>{"name": "add", "parameters": {"a": 1}}'

    def script(submit: Submit) -> list[ToServer]:
        tokens = (generated(submit.sequence_id, id_) for id_ in tokenizer.encode(written))
        return [*tokens, Finished(submit.sequence_id, "stop")]

    with serving(tmp_path, script, tokenizer=tokenizer) as daemon:
        found = choice(give_room(daemon), tools=[TOOL])
        without = choice(daemon)
    assert found["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert found["message"]["content"] is None
    assert without["message"]["content"] == '{"name": "add", "parameters": {"a": 1}}'


def test_parsers_can_be_chosen(tmp_path: Path) -> None:
    script = saying(f"<think>Well.</think>{CALL}")
    settings = {"tool_call_parser": "none", "reasoning_parser": "none"}
    with serving(tmp_path, script, tokenizer=chatty(QWEN), **settings) as daemon:
        message = choice(give_room(daemon), tools=[TOOL])["message"]
    assert message["content"] == f"<think>Well.</think>{CALL}"


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
        grammar = submitted(give_room(daemon), response_format=PERSON).sampling.grammar
        message = choice(daemon, response_format=PERSON)["message"]
    assert accepts(grammar, 'Well.\n</think>\n\n{"name": "Ada"}')
    assert not accepts(grammar, '{"name": "Ada"}')
    assert (message["reasoning"], message["content"]) == ("Well.", '{"name": "Ada"}')


def test_a_forced_call_of_a_special_token_is_read(tmp_path: Path) -> None:
    tokenizer = chatty(QWEN, "<tool_call>", "</tool_call>")
    written = tokenizer.encode(CALL)

    def script(submit: Submit) -> list[ToServer]:
        tokens = (generated(submit.sequence_id, id_) for id_ in written)
        return [*tokens, Finished(submit.sequence_id, "stop")]

    with serving(tmp_path, script, tokenizer=tokenizer) as daemon:
        submit = submitted(give_room(daemon), tools=[TOOL], tool_choice="required")
        found = choice(daemon, tools=[TOOL], tool_choice="required")
    assert f"<[{written[0]}]>" in rules_of(submit.sampling.grammar)
    assert found["message"]["tool_calls"][0]["function"]["name"] == "add"


def test_a_model_of_unknown_format_can_be_made_to_call(tmp_path: Path) -> None:
    with serving(tmp_path, saying(CALL), tokenizer=chatty(CHATML)) as daemon:
        found = choice(give_room(daemon), tools=[TOOL], tool_choice=NAMED)
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


def told(submit: Submit) -> list[ToServer]:
    """A script: "hello world" with log-probabilities."""
    out: list[ToServer] = []
    for token_id in TOKENIZER.encode("hello world"):
        message = generated(submit.sequence_id, token_id)
        tops = [(5, -0.5), (6, -1.5)][: submit.sampling.num_logprobs]
        out.append(Generated(message.sequence_ids, message.token_ids, logprobs([0], tops)))
    return [*out, Finished(submit.sequence_id, "length")]


def test_each_token_has_its_log_probability(qwen: Daemon) -> None:
    qwen.engine.script = told
    found = choice(qwen, logprobs=True, top_logprobs=2)["logprobs"]
    assert "".join(token["token"] for token in found["content"]) == "hello world"
    assert found["refusal"] is None
    assert {token["logprob"] for token in found["content"]} == {-3.0}
    top = [{"token": TOKENIZER.pieces.text(5), "logprob": -0.5, "bytes": TOKENIZER.pieces.bytes(5)}]
    assert found["content"][0]["top_logprobs"][:1] == top
    assert [len(token["top_logprobs"]) for token in found["content"]] == [2] * len(found["content"])
    streamed = [c["choices"][0]["logprobs"] for c in stream(qwen, logprobs=True, top_logprobs=2)]
    assert [t for part in streamed if part for t in part["content"]] == found["content"]
    assert choice(qwen, logprobs=True)["logprobs"]["content"][0]["top_logprobs"] == []


def test_a_prompt_is_scored(qwen: Daemon) -> None:
    qwen.engine.script = scripted
    body = post(qwen, prompt_logprobs=1, max_tokens=5).json()
    first, *others = body["prompt_logprobs"]
    assert first is None
    assert len(others) == body["usage"]["prompt_tokens"] - 1
    assert all(entry.keys() >= {"5"} for entry in others)


def test_tokens_are_told_as_ids_too(qwen: Daemon) -> None:
    qwen.engine.script = saying("hello world")
    body = post(qwen, return_token_ids=True).json()
    hello = TOKENIZER.encode("hello world")
    assert body["choices"][0]["token_ids"] == [*hello, 0]
    assert len(body["prompt_token_ids"]) == body["usage"]["prompt_tokens"]
    chunks = stream(qwen, return_token_ids=True)
    assert chunks[0]["prompt_token_ids"] == body["prompt_token_ids"]
    parts = [part for chunk in chunks for part in chunk["choices"]]
    assert [id_ for part in parts for id_ in part.get("token_ids", [])] == [*hello, 0]


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": [{"role": "robot", "content": "hi"}]}, "messages", "'system'"),
    ({"messages": [{"role": "user"}]}, "messages", "role 'user' needs 'content'"),
    ({"messages": [{"role": "assistant"}]}, "messages", "role 'assistant' needs 'content'"),
    ({"messages": [{"role": "tool", "content": "2"}]}, "messages", "needs 'tool_call_id'"),
    ({"messages": [{"role": "function", "content": "2"}]}, "messages", "needs 'name'"),
    ({"messages": [USER | {"tool_calls": []}]}, "messages", "only an assistant"),
    ({"messages": [USER | {"content": 7}]}, "messages", "a string or an array of text parts"),
    (
        {"messages": [USER | {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages",
        "no images",
    ),
    (
        {"messages": [USER | {"content": [{"type": "input_audio", "input_audio": {}}]}]},
        "messages",
        "no images, audio",
    ),
    ({"messages": [USER | {"x": 1}]}, "x", "Unrecognized"),
    ({"functions": [{"name": "add"}]}, "functions", "use 'tools'"),
    ({"function_call": "auto"}, "function_call", "use 'tool_choice'"),
    ({"audio": {"voice": "x", "format": "wav"}}, "audio", "speaks text"),
    ({"modalities": ["text", "audio"]}, "modalities", "'text'"),
    ({"web_search_options": {"x": 1}}, "web_search_options", "searches nothing"),
    ({"moderation": {"model": "x"}}, "moderation", "moderates nothing"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "custom", "Unrecognized"),
    ({"tools": [TOOL, TOOL]}, "tools", "two functions named 'add'"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools", "pattern"),
    ({"tool_choice": "required"}, "tool_choice", "only allowed when 'tools'"),
    ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice", "expected 'none'"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "sub"}}},
        "tool_choice",
        "names 'sub'",
    ),
    (
        {
            "tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": 7}}}],
            "tool_choice": "required",
        },
        "tools",
        "cannot be used",
    ),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "yaml"}}, "response_format", "'json_object'"),
    ({"top_logprobs": 2}, "top_logprobs", "only allowed when 'logprobs'"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    ({"max_completion_tokens": 8192}, "max_tokens", "maximum context length"),
    ({"messages": [{"role": "user", "content": "hi" * 9000}]}, "messages", "context length"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "not told in a stream"),
    (
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "exclude each other",
    ),
    ({"chat_template": "{{ 1 }}"}, "chat_template", "--trust-request-chat-template"),
    ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "must not hold 'tools'"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens", "greater than 'max_tokens'"),
    ({"service_tier": "gold"}, "service_tier", "'flex'"),
]


@pytest.mark.parametrize(("body", "param", "words"), REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_request_is_400_and_names_the_field(
    qwen: Daemon, body: dict[str, Any], param: str | None, words: str
) -> None:
    found = error(qwen, **body)
    assert found["param"] == param
    assert words in found["message"]
    assert found["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        {"user": "me", "metadata": {"a": "b"}, "store": True, "safety_identifier": "x"},
        {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "verbosity": "low"},
        {"prediction": {"type": "content", "content": "hello"}, "modalities": ["text"]},
        {"functions": [], "audio": None, "tools": [], "tool_choice": "auto", "stop": None},
        {"parallel_tool_calls": False, "reasoning_effort": "high", "top_logprobs": None},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}, USER]},
        {"messages": [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER]},
    ],
    ids=range(7),
)
def test_what_makes_no_difference_is_accepted(qwen: Daemon, body: dict[str, Any]) -> None:
    qwen.engine.script = saying("hello")
    assert choice(qwen, **body)["message"]["content"] == "hello"


def test_what_the_template_refuses_is_400(tmp_path: Path) -> None:
    with serving(tmp_path, tokenizer=chatty(CHATML)) as daemon:
        messages = [USER, {"role": "tool", "tool_call_id": "1", "content": "2"}]
        found = error(daemon, messages=messages)
        no_tools = error(daemon, tools=[TOOL])
    assert found["code"] == "chat_template_refusal"
    assert "I do not know the role tool" in found["message"]
    assert "shows no tools" in no_tools["message"]


def test_a_model_without_a_template_still_completes(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hello")) as daemon:
        assert error(daemon)["code"] == "no_chat_template"
        assert daemon.complete().status_code == 200


def test_the_document_has_the_request_and_the_answer(qwen: Daemon) -> None:
    document = qwen.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "messages" in schemas["ChatRequest"]["required"]
    assert "choices" in schemas["ChatCompletion"]["required"]
    assert json.dumps(document["paths"]["/v1/chat/completions"]).count("ChatRequest") == 1
