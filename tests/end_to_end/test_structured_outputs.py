"""Structured outputs through the real daemon: even a tiny model keeps to the form.

All requests of a test run at the same time, through two stages, in a KV cache so small that some
are preempted.
"""

import asyncio
import json
import re
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field
from transformers import AutoTokenizer

from configs.schema.model import DEMO_MODEL
from demo.tasks import held_out
from tests.end_to_end.daemon import Daemon

PROMPTS = [task.prompt for task in held_out(5, seed=5)]
MAX_TOKENS = 130
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog", "Zebra"]},
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "weight": {"type": "number", "minimum": 0, "maximum": 99, "multipleOf": 0.25},
        "tags": {
            "type": "array",
            "items": {"$ref": "#/$defs/tag"},
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["kind", "name", "age", "weight", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": ["string", "null"], "maxLength": 4}},
}
COMPACT = {"json": SCHEMA, "disable_any_whitespace": True}
TOKENIZER = AutoTokenizer.from_pretrained(DEMO_MODEL)
BLANKS = [id_ for id_ in range(len(TOKENIZER)) if not TOKENIZER.decode([id_]).strip()]
SUMS = r"""
start: term ("+" term){3,6}
term: NUMBER | "(" NUMBER "-" NUMBER ")"
NUMBER: /[1-9][0-9]{0,3}/
"""


@pytest.fixture
def daemon(tight: Daemon) -> Daemon:
    return tight


def ask(daemon: Daemon, prompts: list[str] = PROMPTS, **body: Any) -> list[Any]:
    """Each prompt's choice, asked at the same time."""
    own = ("temperature", "max_tokens", "seed")
    fields = {"temperature": 1.0, "seed": 7, "max_tokens": MAX_TOKENS} | body
    extra = {key: fields.pop(key) for key in list(fields) if key not in own}

    async def gather() -> list[Any]:
        async with daemon.async_client() as client:
            return await asyncio.gather(
                *(
                    client.completions.create(
                        model="tdpipe-demo", prompt=prompt, extra_body=extra, **fields
                    )
                    for prompt in prompts
                )
            )

    return [answer.choices[0].to_dict() for answer in asyncio.run(gather())]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_json_is_by_its_schema(temperature: float, daemon: Daemon) -> None:
    before = daemon.metric("tdpipe_preemptions_total")
    for choice in ask(daemon, temperature=temperature, structured_outputs=COMPACT):
        assert choice["finish_reason"] == "stop", choice
        pet = json.loads(choice["text"])
        assert list(pet) == SCHEMA["required"]
        assert pet["kind"] in ("cat", "dog", "Zebra")
        assert 1 <= len(pet["name"]) <= 8
        assert pet["age"] in range(31)
        assert 0 <= pet["weight"] <= 99
        assert all(tag is None or len(tag) <= 4 for tag in pet["tags"])
        assert 1 <= len(pet["tags"]) <= 2
    assert daemon.metric("tdpipe_preemptions_total") > before


def test_openai_s_response_format_is_kept(daemon: Daemon) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    named = {"name": "answer", "schema": schema | {"additionalProperties": False}, "strict": True}
    wanted = {"type": "json_schema", "json_schema": named}
    for choice in ask(daemon, temperature=2.0, response_format=wanted):
        assert choice["finish_reason"] == "stop", choice
        assert list(json.loads(choice["text"])) == ["ok"]


# A tiny model spends its tokens on blanks, where it may.
NO_BLANKS = {str(id_): -100 for id_ in BLANKS}


class Pet(BaseModel):
    """A form that a client of OpenAI's asks for."""

    name: str = Field(max_length=6)
    friend: Literal["cat", "dog"] | None
    is_young: bool


def test_the_official_client_parses_a_chat_into_its_own_class(daemon: Daemon) -> None:
    with daemon.client() as client:
        for prompt in PROMPTS[:2]:
            answer = client.chat.completions.parse(
                model="tdpipe-demo",
                messages=[{"role": "user", "content": prompt}],
                response_format=Pet,
                temperature=0.5,
                seed=2,
                logit_bias=NO_BLANKS,
            )
            pet = answer.choices[0].message.parsed
            assert isinstance(pet, Pet)
            assert len(pet.name) <= 6


def test_an_answer_is_what_an_expression_matches(daemon: Daemon) -> None:
    expression = r"[A-Z][a-z]{2,8}-(0[1-9]|1[0-2])/20[0-9]{2} (é|ß|世界){2}"
    for choice in ask(daemon, structured_outputs={"regex": expression}):
        assert re.fullmatch(expression, choice["text"])
        assert choice["finish_reason"] == "stop"


def test_an_answer_is_one_of_the_choices(daemon: Daemon) -> None:
    texts = ["north", "south", "south-west", "a much longer way\nover the hills"]
    choices = ask(daemon, temperature=2.0, structured_outputs={"choice": texts})
    assert {choice["text"] for choice in choices} <= set(texts)
    assert len({choice["text"] for choice in choices}) > 1


def test_an_answer_is_by_a_grammar(daemon: Daemon) -> None:
    in_ebnf = 'root ::= "(" root ")" | [0-9] [0-9]'
    for choice in ask(daemon, structured_outputs={"grammar": SUMS}):
        assert re.fullmatch(r"[\d()+-]+", choice["text"])
        assert isinstance(eval(choice["text"]), int)
    for choice in ask(daemon, structured_outputs={"grammar": in_ebnf}, temperature=0.5):
        if choice["finish_reason"] == "stop":
            depth = choice["text"].count("(")
            assert re.fullmatch(rf"\({{{depth}}}\d\d\){{{depth}}}", choice["text"])


def test_a_batch_of_others_changes_no_answer(daemon: Daemon) -> None:
    wanted = {"structured_outputs": COMPACT, "seed": 3}
    before = daemon.metric("tdpipe_preemptions_total")
    together = ask(daemon, **wanted)
    assert daemon.metric("tdpipe_preemptions_total") > before
    assert together == [ask(daemon, [prompt], **wanted)[0] for prompt in PROMPTS]


def test_rows_beside_a_grammar_are_answered_as_without_it(daemon: Daemon) -> None:
    plain = ask(daemon, temperature=0.0, max_tokens=40)

    async def mixed() -> list[str]:
        async with daemon.async_client() as client:

            def complete(prompt: str, **extra: Any) -> Any:
                return client.completions.create(
                    model="tdpipe-demo",
                    prompt=prompt,
                    max_tokens=40,
                    temperature=0.0,
                    extra_body=extra,
                )

            guided = {"structured_outputs": {"regex": "[0-9]{30}"}}
            answers = await asyncio.gather(
                *(complete(prompt, **extra) for prompt in PROMPTS for extra in ({}, guided))
            )
            assert all(re.fullmatch("[0-9]{30}", a.choices[0].text) for a in answers[1::2])
            return [answer.choices[0].text for answer in answers[::2]]

    assert asyncio.run(mixed()) == [choice["text"] for choice in plain]


def test_a_complete_answer_ends_with_any_of_its_stop_tokens_or_waits_for_its_length(
    daemon: Daemon,
) -> None:
    three = {"structured_outputs": {"regex": "[0-9]{3}"}}
    named = ask(daemon, PROMPTS[:2], **three, ignore_eos=True, stop_token_ids=[40])
    assert [(c["finish_reason"], c["stop_reason"], len(c["text"])) for c in named] == [
        ("stop", 40, 3)
    ] * 2
    forever = ask(daemon, PROMPTS[:2], **three, ignore_eos=True, max_tokens=9)
    assert [(c["finish_reason"], len(c["text"])) for c in forever] == [("length", 3)] * 2
    longer = ask(daemon, PROMPTS[:2], **three, min_tokens=6, return_token_ids=True)
    assert [(c["finish_reason"], len(c["text"])) for c in longer] == [("stop", 3)] * 2


def test_an_invalid_grammar_is_refused_and_the_others_continue(daemon: Daemon) -> None:
    for expression in ("(a", "a{1000000}", r"[^\s\S]"):
        with pytest.raises(openai.BadRequestError, match="structured_outputs"):
            ask(daemon, PROMPTS[:1], structured_outputs={"regex": expression})
    assert daemon.get("/health")[0] == 200


def test_no_block_is_left_in_use(daemon: Daemon) -> None:
    daemon.wait_for(lambda: daemon.metric("tdpipe_kv_blocks_used") == 0)
    assert "grammar failed" not in daemon.log()
