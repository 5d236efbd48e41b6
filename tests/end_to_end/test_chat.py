"""Chat with the demo model, through the official client and the real pipeline."""

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from demo.tasks import Task, held_out
from tests.end_to_end.daemon import Daemon

MODEL = "tdpipe-demo"


def asked(task: Task) -> list[Any]:
    """A conversation that asks for the task."""
    return [{"role": "user", "content": task.prompt}]


async def answer(client: openai.AsyncOpenAI, messages: list[Any], *, stream: bool) -> str:
    """The text of one greedy answer that ends by itself."""
    arguments: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0}
    if not stream:
        whole = await client.chat.completions.create(**arguments)
        assert whole.choices[0].finish_reason == "stop"
        return whole.choices[0].message.content or ""
    async with client.chat.completions.stream(**arguments) as events:
        final = await events.get_final_completion()
    assert final.choices[0].finish_reason == "stop"
    return final.choices[0].message.content or ""


def test_chats_end_with_right_answers(demo: Daemon) -> None:
    tasks = held_out(32, seed=31)

    async def ask_all() -> list[str]:
        async with demo.async_client() as client:
            return await asyncio.gather(
                *(answer(client, asked(task), stream=i % 2 == 0) for i, task in enumerate(tasks))
            )

    texts = asyncio.run(ask_all())
    right = sum(text == task.answer for text, task in zip(texts, tasks, strict=True))
    assert right >= 0.9 * len(tasks)


def test_a_chat_is_the_completion_of_its_prompt(demo: Daemon) -> None:
    task = held_out(1, seed=5)[0]
    with demo.client() as client:
        chat: Any = client.chat.completions.create(
            model=MODEL,
            messages=asked(task),
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            extra_body={"return_token_ids": True},
        )
        plain: Any = client.completions.create(
            model=MODEL,
            prompt=chat.prompt_token_ids,
            temperature=0,
            max_tokens=600,
            logprobs=2,
            extra_body={"return_token_ids": True},
        )
    assert chat.choices[0].message.content == plain.choices[0].text == task.answer
    assert chat.choices[0].token_ids == plain.choices[0].token_ids
    found = [token.logprob for token in chat.choices[0].logprobs.content]
    assert found == pytest.approx(plain.choices[0].logprobs.token_logprobs, abs=1e-2)
    assert chat.usage == plain.usage


def test_a_conversation_continues(demo: Daemon) -> None:
    first, second = held_out(2, seed=6)
    messages = [*asked(first), {"role": "assistant", "content": first.answer}, *asked(second)]
    with demo.client() as client:
        found: Any = client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, extra_body={"return_token_ids": True}
        )
        prompt = client.completions.create(
            model=MODEL,
            prompt=found.prompt_token_ids,
            max_tokens=0,
            echo=True,
        )
    expected = f"{first.prompt.strip()}\n{first.answer}<|end|>{second.prompt.strip()}\n"
    assert prompt.choices[0].text == expected


def test_a_begun_answer_is_continued(demo: Daemon) -> None:
    begun = {"role": "assistant", "content": "one two three"}
    with demo.client() as client:
        found = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count to six in words."}, begun],
            temperature=0,
            extra_body={"continue_final_message": True, "echo": True},
        )
    assert found.choices[0].message.content == "one two three four five six"


def test_flex_and_stop_strings_hold_in_the_real_pipeline(demo: Daemon) -> None:
    with demo.client() as client:
        found = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count to nine in words."}],
            temperature=0,
            stop=["five"],
            service_tier="flex",
        )
    assert found.choices[0].message.content == "one two three four "
    assert found.service_tier == "flex"


ADD: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "minimum": 0, "maximum": 99},
                    "word": {"enum": ["red", "blue"]},
                },
                "required": ["a", "word"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("add", "subtract")
]
NAMED: Any = {"type": "function", "function": {"name": "subtract"}}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_a_call_can_be_forced_on_a_model_that_knows_none(
    demo: Daemon, choice: Any, stream: bool
) -> None:
    arguments: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "What is 23 plus 45?"}],
        "tools": ADD,
        "tool_choice": choice,
        "parallel_tool_calls": False,
        "max_completion_tokens": 1000,
        "seed": 5,
    }
    with demo.client() as client:
        if stream:
            with client.chat.completions.stream(**arguments) as events:
                answer: Any = events.get_final_completion()
        else:
            answer = client.chat.completions.create(**arguments)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert not answer.choices[0].message.content
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name in (["subtract"] if choice is NAMED else ["add", "subtract"])
    found = json.loads(call.function.arguments)
    assert set(found) == {"a", "word"}
    assert 0 <= found["a"] <= 99
    assert found["word"] in ("red", "blue")


class Person(BaseModel):
    """A form that the demo model was not trained on."""

    age: int
    is_tall: bool


def test_an_answer_has_the_form_that_is_asked_for(demo: Daemon) -> None:
    with demo.client() as client:
        answer = client.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "user", "content": "What is 23 plus 45?"}],
            response_format=Person,
            max_completion_tokens=1000,
            seed=5,
        )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_a_chat_template_that_cannot_be_used_fails_the_start(tmp_path: Path) -> None:
    template = tmp_path / "bad.jinja"
    template.write_text("{% if %}")
    daemon = Daemon(tmp_path, "--chat-template", str(template))
    daemon.start()
    assert daemon.wait_end() == 1
    assert f"cannot use the chat template {template}" in daemon.log()
