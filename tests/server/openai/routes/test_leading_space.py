"""Answers of sentencepiece models: the space before the first word is kept after a prompt."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from server.text.tokenizer import Tokenizer
from tests.server.openai.routes.test_completion_logprobs import logprobs
from tests.server.world import Daemon, byte_fallback_core, events, generated, serving
from wire.messages import Finished, Generated, Submit, ToServer

END, HELLO, WORLD = 262, 256, [260, 261]  # "</s>", "▁hello", "▁wor" "ld"
ANSWER = [*WORLD, *"€é".encode(), 258]
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}\n"


def llama() -> Tokenizer:
    """As Llama 2, also in that a special token begins each prompt."""
    core = byte_fallback_core()
    core.post_processor = processors.TemplateProcessing("</s> $A", special_tokens=[("</s>", END)])
    return Tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", chat_template=TEMPLATE)
    )


def saying(token_ids: Sequence[int]) -> Callable[[Submit], list[ToServer]]:
    def answer(submit: Submit) -> list[ToServer]:
        messages = [generated(submit.sequence_id, token_id) for token_id in token_ids]
        if submit.sampling.num_logprobs >= 0:
            messages = [
                Generated(each.sequence_ids, each.token_ids, logprobs([0], [(HELLO, -0.5)]))
                for each in messages
            ]
        return [*messages, Finished(submit.sequence_id, "length")]

    return answer


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    with serving(tmp_path, saying(ANSWER), tokenizer=llama()) as daemon:
        yield daemon


def text_of(daemon: Daemon, path: str = "completions", **body: Any) -> list[str]:
    """The texts of all choices, which must be the same if they are streamed."""
    url = f"{daemon.url}/v1/{path}"
    body = {"model": "little", "max_tokens": len(ANSWER)} | body
    found = daemon.http.post(url, json=body)
    assert found.status_code == 200, found.text
    choices = found.json()["choices"]
    whole = [choice.get("text", (choice.get("message") or {}).get("content")) for choice in choices]
    streamed = [""] * len(whole)
    for event in events(daemon.http.post(url, json=body | {"stream": True})):
        for part in event["choices"]:
            streamed[part["index"]] += part.get("text", part.get("delta", {}).get("content") or "")
    assert streamed == whole
    return whole


def test_a_completion_begins_with_its_space(daemon: Daemon) -> None:
    assert text_of(daemon, prompt="▁hello") == [" world€éx"]
    assert text_of(daemon, prompt=[HELLO]) == [" world€éx"]
    assert text_of(daemon, prompt="▁hello", echo=True) == ["▁hello world€éx"]


def test_after_nothing_but_special_tokens_a_text_begins(daemon: Daemon) -> None:
    assert text_of(daemon, prompt=[END]) == ["world€éx"]
    assert text_of(daemon, prompt=[END], echo=True) == ["</s>world€éx"]
    assert text_of(daemon, prompt=[END], skip_special_tokens=False) == [" world€éx"]


def test_each_prompt_of_a_list_and_each_choice_has_its_own_beginning(daemon: Daemon) -> None:
    assert text_of(daemon, prompt=[[END], [HELLO]], n=2) == ["world€éx"] * 2 + [" world€éx"] * 2


def test_a_stop_string_may_begin_with_the_space(daemon: Daemon) -> None:
    assert text_of(daemon, prompt=[HELLO], stop=[" wor"]) == [""]
    assert text_of(daemon, prompt=[END], stop=[" wor"]) == ["world€éx"]


def test_an_answer_in_a_chat_is_what_it_adds_to_the_conversation(daemon: Daemon) -> None:
    messages = [{"role": "user", "content": "▁hello"}]
    assert text_of(daemon, "chat/completions", messages=messages) == [" world€éx"]


@pytest.mark.parametrize("prompt", [[HELLO, 258], [END, HELLO], [258, *"€".encode(), HELLO]])
@pytest.mark.parametrize("echo", [False, True])
def test_each_token_is_at_its_offset(daemon: Daemon, prompt: list[int], echo: bool) -> None:
    body = {"prompt": prompt, "max_tokens": len(ANSWER), "logprobs": 1, "echo": echo}
    choice = daemon.complete(**body).json()["choices"][0]
    found, text = choice["logprobs"], choice["text"]
    for token, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert token.startswith("bytes:") or text.startswith(token, offset)
    begin = len(text) - len(" world€éx")
    offsets = [begin + i for i in (0, 4, 6, 6, 6, 7, 7, 8)]
    assert found["text_offset"][-len(ANSWER) :] == offsets


def test_the_first_token_of_a_text_has_the_text_that_is_shown(daemon: Daemon) -> None:
    body = {"prompt": [END], "max_tokens": len(ANSWER), "logprobs": 1}
    found = daemon.complete(**body).json()["choices"][0]["logprobs"]
    assert found["tokens"][:2] == ["wor", "ld"]
    assert found["top_logprobs"][:2] == [
        {"hello": -0.5, "wor": -3.0},
        {" hello": -0.5, "ld": -3.0},
    ]
