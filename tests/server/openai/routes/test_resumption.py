"""Resumed streams: cut anywhere, their events are together those of an undisturbed answer."""

import random
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.text.tokenizer import Tokenizer
from tests import resuming
from tests.resuming import Events, events_of, read_chunks, resume_of, resumed
from tests.server.openai import responding
from tests.server.openai.chatting import CALL, OTHER, OTHER_CALL, TOOL, USER
from tests.server.templates import OPENS_REASONING, QWEN, chatty, with_long_context
from tests.server.world import MODEL, TOKENIZER, Daemon, generated, serving
from wire.messages import Finished, FinishReason, Submit, ToServer

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
TEXT = "hello wörld € 🙂 fox"
THOUGHTS = f"<think>\nhm, hello €\n</think>\n\n{TEXT}"


def saying_on(text: str, tokenizer: Tokenizer, seed: int) -> Callable[[Submit], list[ToServer]]:
    """A script: as `saying`, but after the tokens that the sequence has, some of them at once."""
    rng = random.Random(seed)

    def answer(submit: Submit) -> list[ToServer]:
        token_ids = [*tokenizer.encode(text), *submit.stop_token_ids[:1]]
        stops = [i for i, id_ in enumerate(token_ids, 1) if id_ in submit.stop_token_ids]
        end = next((i for i in stops if i >= submit.min_tokens), len(token_ids))
        reason: FinishReason = "stop" if end <= submit.max_tokens else "length"
        token_ids = token_ids[: min(end, submit.max_tokens)]
        begun = array("i", submit.output_token_ids).tolist()
        assert token_ids[: len(begun)] == begun
        messages: list[ToServer] = []
        at = len(begun)
        while at < len(token_ids):
            count = rng.randint(1, 4) if seed else 1
            messages.append(generated(submit.sequence_id, *token_ids[at : at + count]))
            at += count
        return [*messages, Finished(submit.sequence_id, reason)]

    return answer


@contextmanager
def talking(
    folder: Path, text: str, seed: int, template: str = QWEN, **settings: Any
) -> Iterator[Daemon]:
    """A server whose model says this text."""
    tokenizer = chatty(template)
    with serving(
        folder, saying_on(text, tokenizer, seed), tokenizer=tokenizer, **settings
    ) as daemon:
        yield with_long_context(daemon)


def cut_everywhere(
    daemon: Daemon, path: str, body: dict[str, Any], summed: Callable[[Events], Any]
) -> None:
    """Compare the answer with those that were cut after each chunk, and after most events."""
    body = {"model": MODEL, "stream": True} | body
    chunks = read_chunks(daemon.url, path, body)
    whole = summed(events_of(chunks))
    # Without the last chunk, which completes the answer.
    for number in range(1, len(chunks)):
        begun = events_of(chunks[:number])
        assert summed([*begun, *resumed(daemon.url, path, body, begun)]) == whole, begun
    if path != RESPONSES:  # whose events are complete only chunk by chunk
        events = events_of(chunks)
        for number in range(1, len(events)):
            if any(choice["finish_reason"] for choice in events[number]["choices"]):
                continue  # the text before it may be more than its tokens are for certain
            begun = events[:number]
            assert summed([*begun, *resumed(daemon.url, path, body, begun)]) == whole, begun


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"max_tokens": 7},
        {"n": 2, "seed": 3, "stream_options": {"include_usage": True}},
        {"prompt": ["hi", "fox"], "n": 2},
        {"echo": True, "return_token_ids": True},
        {"stop": ["rld €", "🙂 f"]},
        {"stop": ["rld €"], "include_stop_str_in_output": True, "min_tokens": 3},
        {"stop": ["€"], "min_tokens": 14},
        {"stop": ["<|end|>"]},
        {"stop_token_ids": TOKENIZER.encode("€")[-1:]},
        {
            "min_tokens": 4,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        },
    ],
)
def test_completions_go_on(tmp_path: Path, fields: dict[str, Any], seed: int) -> None:
    with talking(tmp_path, TEXT, seed) as daemon:
        body = {"prompt": "hi", "max_tokens": 50} | fields
        cut_everywhere(daemon, COMPLETIONS, body, resuming.summed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (TEXT, {"max_tokens": 9}),
        (TEXT, {"n": 3, "stop": ["€ 🙂"]}),
        (THOUGHTS, {"stream_options": {"include_usage": True}}),
        (THOUGHTS, {"include_reasoning": False}),
        (f"hello \n{CALL}\n", {"tools": [TOOL, OTHER]}),
        (f"{CALL}\n{OTHER_CALL}", {"tools": [TOOL, OTHER]}),
        (f"{CALL}\n{OTHER_CALL}", {"tools": [TOOL, OTHER], "stop": ["never"]}),
        (f"<think>a</think> {CALL}", {"tools": [TOOL]}),
        ("hello <tool_call> no call", {"tools": [TOOL]}),
    ],
)
def test_chats_go_on(tmp_path: Path, text: str, fields: dict[str, Any], seed: int) -> None:
    with talking(tmp_path, text, seed) as daemon:
        cut_everywhere(daemon, CHAT, {"messages": [USER]} | fields, resuming.summed)


def test_a_chat_whose_prompt_opens_the_reasoning_goes_on(tmp_path: Path) -> None:
    with talking(tmp_path, f"hm\n</think>\n{TEXT}", 0, OPENS_REASONING) as daemon:
        cut_everywhere(daemon, CHAT, {"messages": [USER]}, resuming.summed)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("text", "fields"),
    [
        (TEXT, {}),
        (TEXT, {"max_output_tokens": 9}),
        (TEXT, {"stop": ["€ 🙂"]}),
        (THOUGHTS, {}),
        (f"<think>a</think>{TEXT}\n{CALL}", {"tools": [responding.TOOL]}),
        (f"{OTHER_CALL}\n{CALL}", {"tools": [responding.OTHER, responding.TOOL]}),
        ("", {}),
    ],
)
def test_responses_go_on(tmp_path: Path, text: str, fields: dict[str, Any], seed: int) -> None:
    with talking(tmp_path, text, seed) as daemon:
        cut_everywhere(daemon, RESPONSES, {"input": "hi"} | fields, whole_response)


def whole_response(events: Events) -> Any:
    """The last event, if the events are numbered and add up to it."""
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    response = events[-1]["response"]
    del response["completed_at"]
    del response["usage"]["input_tokens_details"]
    assert responding.summed(events) == response["output"]
    ids = [item["id"] for item in response["output"]]
    assert len(set(ids)) == len(ids)
    new = ("id", "call_id", "created_at")  # for each request
    items = [{k: v for k, v in item.items() if k not in new} for item in response["output"]]
    return {k: v for k, v in response.items() if k not in new} | {"output": items}


def test_numbers_of_events_ascend_even_if_nobody_knows_the_last_one(tmp_path: Path) -> None:
    with talking(tmp_path, THOUGHTS, 1) as daemon:
        body = {"model": MODEL, "stream": True, "input": "hi"}
        chunks = read_chunks(daemon.url, RESPONSES, body)
        for number in range(1, len(chunks)):
            begun = events_of(chunks[:number])
            resume = resume_of(begun)
            last = resume.pop("sequence_number")
            rest = read_chunks(daemon.url, RESPONSES, body | {"tdpipe_resume": resume})
            numbers = [event["sequence_number"] for event in events_of(rest)]
            assert numbers == sorted(set(numbers))
            assert numbers[0] > last


def test_finished_choices_are_not_run_again(tmp_path: Path) -> None:
    with talking(tmp_path, TEXT, 0) as daemon:
        begun = {"index": 0, "token_ids": TOKENIZER.encode("hello"), "finished": True}
        other = {"index": 1, "token_ids": TOKENIZER.encode(TEXT)[:2]}
        resume = {"id": "cmpl-1", "created": 7, "choices": [begun, other]}
        body = {"model": MODEL, "prompt": "hi", "n": 2, "max_tokens": 50, "stream": True}
        body |= {"tdpipe_resume": resume, "stream_options": {"include_usage": True}}
        events = events_of(read_chunks(daemon.url, COMPLETIONS, body))
        assert {choice["index"] for event in events for choice in event["choices"]} == {1}
        assert {(event["id"], event["created"]) for event in events} == {("cmpl-1", 7)}
        (submit,) = daemon.engine.wait_for(Submit)
        assert array("i", submit.output_token_ids).tolist() == other["token_ids"]
        num_tokens = len(begun["token_ids"]) + len(TOKENIZER.encode(TEXT)) + 1
        assert events[-1]["usage"]["completion_tokens"] == num_tokens


def test_without_the_header_no_event_has_tokens(tmp_path: Path) -> None:
    with talking(tmp_path, TEXT, 0) as daemon:
        for path, prompt in ((COMPLETIONS, {"prompt": "hi"}), (CHAT, {"messages": [USER]})):
            body = {"model": MODEL, "stream": True, "max_tokens": 50} | prompt
            assert "token_ids" not in daemon.http.post(daemon.url + path, json=body).text
            headers = {"x-tdpipe-resumable": "1"}
            answer = daemon.http.post(daemon.url + path, json=body, headers=headers)
            assert "token_ids" in answer.text
            assert "prompt_token_ids" not in answer.text
            whole = daemon.http.post(
                daemon.url + path, json=body | {"stream": False}, headers=headers
            ).json()
            assert whole["choices"][0]["token_ids"] is None


@pytest.mark.parametrize(
    ("resume", "param"),
    [
        (7, "tdpipe_resume"),
        ({}, "tdpipe_resume.id"),
        ({"id": "", "created": 1, "choices": []}, "tdpipe_resume.id"),
        ({"id": "a", "created": -1, "choices": []}, "tdpipe_resume.created"),
        ([{"index": 2, "token_ids": []}], "tdpipe_resume.choices[0].index"),
        ([{"index": -1, "token_ids": []}], "tdpipe_resume.choices[0].index"),
        ([{"index": 0, "token_ids": [1]}] * 2, "tdpipe_resume.choices[1].index"),
        ([{"index": 0, "token_ids": [1] * 6}], "tdpipe_resume.choices[0].token_ids"),
        ([{"index": 1, "token_ids": [100_000]}], "tdpipe_resume.choices[0].token_ids"),
        ([{"index": 1, "token_ids": [-1]}], "tdpipe_resume.choices[0].token_ids[0]"),
        ([{"index": 1, "token_ids": "x"}], "tdpipe_resume.choices[0].token_ids"),
    ],
)
def test_what_cannot_be_resumed_is_refused(daemon: Daemon, resume: Any, param: str) -> None:
    if isinstance(resume, list):
        resume = {"id": "a", "created": 1, "choices": resume}
    answer = daemon.complete(n=2, max_tokens=5, stream=True, tdpipe_resume=resume)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_only_streams_are_resumed(daemon: Daemon) -> None:
    answer = daemon.complete(tdpipe_resume={"id": "a", "created": 1, "choices": []})
    assert answer.status_code == 400
    assert "'stream'" in answer.json()["error"]["message"]


def test_responses_that_need_more_than_the_tokens_are_refused(tmp_path: Path) -> None:
    resume: dict[str, Any] = {"id": "a", "created": 1, "choices": [{"index": 0, "token_ids": [5]}]}
    with talking(tmp_path, TEXT, 0) as daemon:
        logprobs = {"include": ["message.output_text.logprobs"]}
        refusal = responding.error(daemon, stream=True, tdpipe_resume=resume, **logprobs)
        assert "log-probabilities" in refusal["message"]
        resume["choices"][0]["finished"] = True
        refusal = responding.error(daemon, stream=True, tdpipe_resume=resume)
        assert "finished" in refusal["message"]
