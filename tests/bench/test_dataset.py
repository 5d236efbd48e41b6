"""Datasets: three kinds of lines, and errors that name the line."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.call import CHAT, COMPLETIONS, Call
from bench.dataset import LineDefaults, read_dataset
from simulator.workloads.request import WorkloadError

CONVERSATION = [{"role": "user", "content": "hi"}]


def read(folder: Path, *lines: Any, **defaults: Any) -> list[Call]:
    """The calls of a file with these lines, texts as they are."""
    path = folder / "own.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return read_dataset(path, LineDefaults(**defaults))


def test_the_body_of_a_batch_line_is_sent_as_it_is(tmp_path: Path) -> None:
    body = {"model": "m", "messages": CONVERSATION, "top_p": 0.5, "stream": False}
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": body}
    (call,) = read(tmp_path, line, max_tokens=7)
    assert call == Call(CHAT, {"model": "m", "messages": CONVERSATION, "top_p": 0.5})
    assert call.body("other")["model"] == "m"


def test_a_plain_prompt_goes_to_the_chosen_endpoint(tmp_path: Path) -> None:
    line = {"prompt": "hi", "max_tokens": 5, "stop": ["."]}
    (completion,) = read(tmp_path, line)
    assert completion == Call(COMPLETIONS, {"prompt": "hi", "max_tokens": 5, "stop": ["."]})
    (chat,) = read(tmp_path, line, endpoint=CHAT)
    assert chat == Call(CHAT, {"messages": CONVERSATION, "max_tokens": 5, "stop": ["."]})


def test_a_conversation_goes_to_the_chat(tmp_path: Path) -> None:
    (call,) = read(tmp_path, {"messages": CONVERSATION, "max_completion_tokens": 5})
    assert call == Call(CHAT, {"messages": CONVERSATION, "max_completion_tokens": 5})


def test_a_line_without_a_length_gets_the_default(tmp_path: Path) -> None:
    calls = read(tmp_path, {"prompt": "a"}, {"prompt": "b", "output_tokens": 3}, max_tokens=9)
    assert [call.fields["max_tokens"] for call in calls] == [9, 3]


def test_token_ids_are_a_prompt_of_completions_only(tmp_path: Path) -> None:
    (call,) = read(tmp_path, {"prompt_token_ids": [4, 5], "max_tokens": 5})
    assert call.fields["prompt"] == [4, 5]
    with pytest.raises(WorkloadError, match="a chat has no token ids"):
        read(tmp_path, {"prompt_token_ids": [4, 5]}, endpoint=CHAT)


def test_overrides_replace_what_the_lines_say(tmp_path: Path) -> None:
    line = {"prompt": "a", "max_tokens": 5, "temperature": 1.0}
    (call,) = read(tmp_path, line, overrides={"temperature": 0.0, "model": "m"})
    assert call.fields == {"prompt": "a", "max_tokens": 5, "temperature": 0.0, "model": "m"}


def test_answers_and_arrivals_are_not_sent_and_calls_are_in_order(tmp_path: Path) -> None:
    late = {"prompt": "b", "max_tokens": 1, "arrival_s": 2.5, "answer": "B"}
    early = {"prompt": "a", "max_tokens": 1, "arrival_s": 1}
    calls = read(tmp_path, late, "", early)
    assert [(call.arrival_s, call.answer) for call in calls] == [(1.0, None), (2.5, "B")]
    assert [set(call.fields) for call in calls] == [{"prompt", "max_tokens"}] * 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{oops", "line 2: JSON"),
        ("[]", "line 2"),
        ({}, "give a prompt, messages, or a body"),
        ({"prompt": "", "max_tokens": 1}, "give a prompt"),
        ({"prompt": "a", "prompt_token_ids": [1]}, "give a prompt"),
        ({"url": "/v1/embeddings", "body": {}}, "url must be one of /v1/completions"),
        ({"url": COMPLETIONS, "body": 1}, "body must be an object"),
        ({"url": COMPLETIONS, "body": {}, "temperature": 1}, "'temperature' is not a field"),
        ({"prompt": "a", "arrival_s": -1}, "arrival_s must be a number from 0"),
        ({"prompt": "a", "arrival_s": "1"}, "arrival_s must be a number from 0"),
        ({"prompt": "a", "answer": 1}, "answer must be a text"),
        ({"prompt": "a", "arrival_s": 1}, "arrival_s must be in all lines or in none"),
    ],
)
def test_a_wrong_line_is_named(line: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"own\.jsonl") as raised:
        read(tmp_path, {"prompt": "a"}, line)
    assert reason in str(raised.value)


def test_a_file_without_requests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="contains no requests"):
        read(tmp_path, "", "")
    with pytest.raises(WorkloadError, match="cannot read"):
        read_dataset(tmp_path / "none.jsonl", LineDefaults())
