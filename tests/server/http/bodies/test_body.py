"""Request bodies: invalid ones are refused early, and null is handled as documented."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from pydantic import BaseModel, Field, ValidationError

import server.app  # noqa: F401 - with all bodies
from server.http.bodies.body import MAX_BRACKETS, MAX_DEPTH, MAX_FIELDS, Body, parse
from server.http.errors import ApiError
from server.openai.fields.chat import ChatRequest
from server.openai.fields.completion import CompletionRequest
from server.openai.fields.conversation import MAX_MESSAGES
from server.openai.routes.tokenization import TokenizeRequest


def kinds(kind: type[Body]) -> Iterator[type[Body]]:
    """All subclasses of a body."""
    for each in kind.__subclasses__():
        if each.__module__.startswith("server."):
            yield each
            yield from kinds(each)


def lists(schema: object) -> Iterator[dict[str, Any]]:
    """Every list in a core schema whose items are validated."""
    if isinstance(schema, dict):
        if schema.get("type") == "list" and schema.get("items_schema", {}).get("type") != "any":
            yield schema
        for keyword, part in schema.items():
            if keyword != "serialization":
                yield from lists(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            yield from lists(part)


def refusal(**fields: Any) -> str:
    """The error message of a request."""
    body = msgspec.json.encode({"model": "m", "prompt": "hi"} | fields)
    with pytest.raises(ApiError) as caught:
        parse(CompletionRequest, body)
    assert caught.value.status == 400
    return str(caught.value)


@pytest.mark.parametrize("kind", sorted(set(kinds(Body)), key=lambda kind: kind.__name__))
def test_validation_of_a_list_stops_at_the_first_error(kind: type[Body]) -> None:
    assert all(found.get("fail_fast") for found in lists(kind.__pydantic_core_schema__))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([*range(1000), "x"], "'prompt[1000]': expected an integer, got \"x\" (a string)."),
        (["x"] * 1000 + [1], "'prompt[1000]': expected a string, got 1 (an integer)."),
        ([[1]] * 1000 + [[""]], "'prompt[1000][0]': expected an integer, got \"\" (a string)."),
    ],
)
def test_an_invalid_prompt_has_one_error_per_accepted_type(prompt: Any, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CompletionRequest.model_validate({"model": "m", "prompt": prompt})
    assert caught.value.error_count() <= 6
    assert refusal(prompt=prompt) == f"Invalid type for {words}"


def test_prompts_are_counted_before_they_are_validated() -> None:
    for prompt in ("a", [1], {}):
        message = refusal(prompt=[prompt] * 4097)
        assert message == "Too many completions: prompts x n must not exceed 4096."


def test_the_fields_of_an_object_are_limited() -> None:
    many = {f"f{i}": 1 for i in range(MAX_FIELDS + 1)}
    words = f"An object in your request has more than {MAX_FIELDS} fields."
    assert refusal(**many) == words
    assert refusal(response_format=many) == words


def test_biases_are_counted_before_they_are_validated() -> None:
    message = refusal(logit_bias=dict.fromkeys(map(str, range(1025)), "x"))
    assert message == (
        "Invalid value for 'logit_bias': dictionary should have at most 1024 items, not 1025."
    )


def test_messages_are_counted_before_they_are_validated() -> None:
    for message in ({"role": "user", "content": "x"}, {}, 1):
        body = msgspec.json.encode({"model": "m", "messages": [message] * (MAX_MESSAGES + 1)})
        for kind in (ChatRequest, TokenizeRequest):
            with pytest.raises(ApiError) as caught:
                parse(kind, body)
            assert "list should have at most 16384 items, not 16385" in str(caught.value)


@pytest.mark.parametrize("depth", [MAX_DEPTH, 990, 100_000])
@pytest.mark.parametrize(("begin", "end"), [("[", "]"), ('{"a":', "}")])
def test_a_body_that_is_nested_too_deeply_is_refused(depth: int, begin: str, end: str) -> None:
    inner = "1" if begin == '{"a":' else ""
    value = begin * depth + inner + end * depth
    with pytest.raises(ApiError, match="nested too deeply") as caught:
        parse(Order, f'{{"name": "x", "free": {value}}}'.encode())
    assert caught.value.status == 400


def test_brackets_that_are_not_nested_do_not_count_as_depth() -> None:
    free = [[[1]]] * MAX_DEPTH + ["[" * MAX_DEPTH]
    body = msgspec.json.encode({"name": "x", "free": free})
    assert parse(Order, body).free == free
    deepest = "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1)
    assert parse(Order, f'{{"name": "[x", "free": {deepest}}}'.encode()).free


@pytest.mark.parametrize("value", ['{"":{}},', "[],", "[[[]]],"])
def test_objects_and_lists_are_limited(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def body(num_brackets: int) -> bytes:
        many = value * ((num_brackets - 2) // (value.count("[") + value.count("{")))
        return f'{{"name": "x", "free": [{many}1]}}'.encode()

    assert parse(Order, body(MAX_BRACKETS)).free
    monkeypatch.delattr(msgspec.json, "decode")
    with pytest.raises(ApiError, match="more than 262144 opening brackets") as caught:
        parse(Order, body(MAX_BRACKETS + 4))
    assert caught.value.status == 400


def test_source_text_and_token_ids_stay_below_the_limit() -> None:
    line = "for (const [key, value] of Object.entries(options)) { table[key] = value; }\n"
    megabytes = 4 << 20
    long = {"name": line * (megabytes // len(line)), "free": [300] * (megabytes // 4)}
    assert parse(Order, msgspec.json.encode(long)) == Order(**long)


class Inner(Body):
    size: int = 1


class Order(Body):
    name: str
    count: int = Field(1, description="how many")
    inner: Inner = Inner()
    free: Any = None


class Answer(BaseModel):
    order: Order


def takes_null(field: dict[str, Any]) -> bool:
    return field.keys() <= {"title", "default"} or {"type": "null"} in field.get("anyOf", ())


def test_null_is_the_default_of_all_but_required_fields() -> None:
    assert parse(Order, b'{"name": "a", "count": null, "inner": null}') == Order(name="a")
    with pytest.raises(ApiError, match="Missing required parameter: 'name'"):
        parse(Order, b'{"name": null}')


def test_the_schema_allows_null_where_it_is_accepted() -> None:
    fields = Order.model_json_schema()["properties"]
    assert {name for name in fields if takes_null(fields[name])} == {"count", "inner", "free"}
    assert fields["count"]["description"] == "how many"


def test_the_schema_allows_null_within_another_model() -> None:
    models = Answer.model_json_schema()["$defs"]
    assert takes_null(models["Inner"]["properties"]["size"])
    assert takes_null(models["Order"]["properties"]["count"])
