"""Constraints on an answer's form: over HTTP, and how often a grammar is checked."""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.schema.grammar_limits import MAX_GRAMMAR_BYTES, MAX_GRAMMAR_BYTES_OF_REQUEST
from server.grammar import grammar_text
from server.grammar import grammars as module
from server.grammar.grammar_checker import CheckerError, UncheckedError, Verdict
from server.grammar.grammar_text import choice, ebnf, json_object, json_schema, lark, regex
from server.grammar.grammars import MAX_EBNF_CHARACTERS, CheckedGrammars, grammar_of
from server.http.errors import ApiError
from tests.server.grammar.grammar_readers import accepts
from tests.server.templates import CHATML, chatty
from tests.server.world import MODEL, TOKENIZER, Daemon, saying, serving
from wire.messages import Submit

SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "boolean"}}}
# It takes a second to convert to Lark, which is invalid.
CHAIN = "root::=a0\n" + "".join(f"a{i}::=a{i + 1}\n" for i in range(1246)) + 'a1246::="x"'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with serving(tmp_path_factory.mktemp("grammars"), saying("hi")) as daemon:
        yield daemon


def asked(daemon: Daemon, **body: Any) -> str:
    """The grammar that the engine was given."""
    before = len(daemon.engine.wait_for(Submit, 0))
    response = daemon.complete(**body)
    assert response.status_code == 200, response.text
    return daemon.engine.wait_for(Submit, before + 1)[-1].sampling.grammar


def refused(daemon: Daemon, **body: Any) -> dict[str, Any]:
    """The error of a request."""
    response = daemon.complete(**body)
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def in_format(schema: Any, **more: Any) -> dict[str, Any]:
    """A response_format by a schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema} | more}


@pytest.mark.parametrize(
    ("body", "grammar"),
    [
        ({}, ""),
        ({"response_format": None, "structured_outputs": None}, ""),
        ({"response_format": {"type": "text"}}, ""),
        ({"response_format": {"type": "json_object"}}, json_object()),
        ({"response_format": in_format(SCHEMA)}, json_schema(SCHEMA, lenient=True)),
        ({"response_format": in_format(SCHEMA, strict=True)}, json_schema(SCHEMA)),
        ({"structured_outputs": {"json": SCHEMA}}, json_schema(SCHEMA)),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, json_schema(SCHEMA)),
        ({"structured_outputs": {"json": "true"}}, json_schema(True)),
        (
            {"structured_outputs": {"json": SCHEMA, "whitespace_pattern": " ?"}},
            json_schema(SCHEMA, whitespace=" ?"),
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "disable_any_whitespace": True}},
            json_schema(SCHEMA, whitespace=None),
        ),
        ({"structured_outputs": {"json_object": True}}, json_object()),
        ({"structured_outputs": {"regex": "[a-c]+"}}, regex("[a-c]+")),
        ({"structured_outputs": {"choice": ["yes", "no"]}}, choice(["yes", "no"])),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, lark('start: "a"')),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a"}},
            regex("a"),
        ),
    ],
)
def test_the_engine_is_given_the_grammar(
    body: dict[str, Any], grammar: str, daemon: Daemon
) -> None:
    assert asked(daemon, **body) == grammar


def test_properties_come_in_the_order_of_the_schema(daemon: Daemon) -> None:
    grammar = asked(daemon, response_format=in_format(SCHEMA))
    assert accepts(grammar, '{"b": 1, "a": true}')
    assert not accepts(grammar, '{"a": true, "b": 1}')


def test_an_ebnf_grammar_is_read(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    # Not in this process, where it would block all requests.
    monkeypatch.setattr(grammar_text, "lark_of", None)
    monkeypatch.setattr(grammar_text, "any_to_lark", None)
    grammar = asked(daemon, structured_outputs={"grammar": 'root ::= "a" root | "b"'})
    assert accepts(grammar, "aab")


@pytest.mark.parametrize(
    ("body", "words", "param"),
    [
        (
            {"structured_outputs": {"regex": "(a"}},
            "'structured_outputs' cannot be used: unclosed group.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {}},
            "'structured_outputs' must have exactly one of json, regex, choice, grammar, "
            "json_object, not 0.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "'structured_outputs' must have exactly one of json, regex, choice, grammar, "
            "json_object, not 2.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"choice": []}},
            "'structured_outputs' must have 1 to 4096 choices.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"json": "{"}},
            "'structured_outputs' has a JSON schema that cannot be read: Input data was truncated.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"grammar": "root ::= other"}},
            "'structured_outputs' has an EBNF grammar that cannot be read: Rule 'other' not found.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"grammar": CHAIN}},
            "'structured_outputs' exceeds the checker's memory or nesting limit; simplify it.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"grammar": "root ::= " + "a" * MAX_EBNF_CHARACTERS}},
            "'structured_outputs' has an EBNF grammar of more than 16384 characters; write it in "
            "Lark.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"choice": ["\x7f" * MAX_GRAMMAR_BYTES, "a"]}},
            "'structured_outputs' is larger than 256 KiB.",
            "structured_outputs",
        ),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "'response_format' and 'structured_outputs' cannot both be used.",
            "structured_outputs",
        ),
        (
            {"response_format": {"type": "json_schema"}},
            "Missing required parameter: 'response_format.json_schema'.",
            "response_format",
        ),
        (
            {"response_format": in_format({"type": "array", "uniqueItems": True}, strict=True)},
            "'response_format' cannot be used: Unimplemented keys: [\"uniqueItems\"].",
            "response_format",
        ),
        (
            {"response_format": in_format({"enum": ["x" * 100 + str(i) for i in range(10_000)]})},
            "'response_format' is larger than 256 KiB.",
            "response_format",
        ),
        (
            {"response_format": {"type": "xml"}},
            "Invalid value for 'response_format.type': input should be 'text', 'json_object' or "
            "'json_schema', got \"xml\" (a string).",
            "response_format.type",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "Missing required parameter: 'response_format.json_schema.name'.",
            "response_format.json_schema.name",
        ),
    ],
)
def test_an_invalid_grammar_is_refused_by_its_field(
    body: dict[str, Any], words: str, param: str, daemon: Daemon
) -> None:
    error = refused(daemon, **body)
    assert (error["message"], error["param"]) == (words, param)
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("depth", [50, 200, 900, 5000])
def test_deeply_nested_schemas_do_no_harm(depth: int, daemon: Daemon) -> None:
    body = '{"items":' * depth + "{}" + "}" * depth
    for field in (f'"structured_outputs":{{"json":{body}}}', f'"response_format":{body}'):
        text = f'{{"model": "little", "prompt": "hi", {field}}}'
        assert daemon.http.post(f"{daemon.url}/v1/completions", content=text).status_code in (
            200,
            400,
        )
    assert daemon.get("/health").status_code == 200


def test_a_form_of_any_depth_is_answered(daemon: Daemon) -> None:
    for depth in range(900, 1000):
        schema = '{"items":' * depth + "{}" + "}" * depth
        form = f'{{"type":"json_schema","json_schema":{{"name":"a","schema":{schema}}}}}'
        text = f'{{"model": "little", "prompt": "hi", "response_format":{form}}}'
        response = daemon.http.post(f"{daemon.url}/v1/completions", content=text)
        assert response.status_code == 400


def test_a_tools_schema_of_any_depth_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path, saying("hi"), tokenizer=chatty(CHATML)) as daemon:
        for depth in range(300, 700, 5):
            schema: dict[str, Any] = {}
            for _ in range(depth):
                schema = {"items": schema}
            body = {
                "model": MODEL,
                # Long enough that the template is rendered in a thread, with a stack of its own.
                "messages": [{"role": "user", "content": "hi" * 10_000}],
                "tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}],
                "tool_choice": "required",
            }
            response = daemon.http.post(f"{daemon.url}/v1/chat/completions", json=body)
            assert response.status_code == 400, depth


def test_a_tokenizer_without_bytes_is_an_error(tmp_path: Path) -> None:
    class Wordy(type(TOKENIZER)):  # type: ignore[misc]
        serialised = None

    tokenizer = Wordy(TOKENIZER._tokenizer)
    with serving(tmp_path, saying("hi"), tokenizer=tokenizer) as daemon:
        error = refused(daemon, structured_outputs={"regex": "a"})
        assert "need a fast tokenizer" in error["message"]
        assert error["code"] == "unsupported_parameter"
        assert asked(daemon) == ""


class CountedChecker:
    """A checker that remembers what it was asked, and waits until it may go on."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.failures: dict[str, Exception] = {}
        self.lark: dict[str, str] = {}
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def check(self, grammar: str) -> Verdict:
        self.checked.append(grammar)
        self.may_go_on.wait()
        if grammar in self.failures:
            raise self.failures[grammar]
        return Verdict("is wrong" if grammar == "wrong" else "", self.lark.get(grammar, ""))

    def close(self) -> None:
        self.may_go_on.set()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[CheckedGrammars, CountedChecker]]:
    checker = CountedChecker()
    monkeypatch.setattr(module, "GrammarChecker", lambda _: checker)
    with closing(CheckedGrammars(TOKENIZER)) as grammars:
        yield grammars, checker


def test_a_grammar_is_checked_once_whether_right_or_wrong(
    counted: tuple[CheckedGrammars, CountedChecker],
) -> None:
    grammars, checker = counted

    async def ask() -> list[object]:
        batches = [["right", "wrong"] * 20, ["wrong", "right"]]
        answers: list[object] = []
        for texts in batches:
            checks = (grammars.check(text, "field") for text in texts)
            answers += await asyncio.gather(*checks, return_exceptions=True)
        return answers

    answers = asyncio.run(ask())
    assert checker.checked == ["right", "wrong"]
    assert sum(answer == "right" for answer in answers) == 21
    assert sum(isinstance(answer, ApiError) for answer in answers) == 21


@pytest.mark.parametrize("patient", [False, True])
def test_ebnf_is_converted_by_the_checker_and_measured_as_lark(
    patient: bool, counted: tuple[CheckedGrammars, CountedChecker]
) -> None:
    grammars, checker = counted
    text = ebnf("root ::= [a]")
    checker.lark[text] = "much larger" * 1000

    def check(copies: int) -> str:
        return asyncio.run(grammars.check(text, "field", copies=copies, patient=patient))

    assert check(1) == checker.lark[text]
    with pytest.raises(ApiError, match="11000 bytes"):
        check(2000)
    assert checker.checked == [text]


def test_no_grammar_needs_no_check(counted: tuple[CheckedGrammars, CountedChecker]) -> None:
    grammars, checker = counted
    asyncio.run(grammars.check("", "field"))
    assert not checker.checked


def test_too_many_new_grammars_at_once_are_refused(
    counted: tuple[CheckedGrammars, CountedChecker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    grammars, checker = counted

    async def ask() -> list[object]:
        checks = (grammars.check(f"number {i}", "field") for i in range(5))
        return list(await asyncio.gather(*checks, return_exceptions=True))

    answers = asyncio.run(ask())
    assert answers[:3] == ["number 0", "number 1", "number 2"]
    assert [answer.status for answer in answers[3:] if isinstance(answer, ApiError)] == [429] * 2
    assert len(checker.checked) == 3


def test_a_check_that_takes_too_long_is_429_and_its_verdict_is_cached(
    counted: tuple[CheckedGrammars, CountedChecker], monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars, checker = counted
    checker.may_go_on.clear()

    async def ask() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, "MAX_WAIT_S", 0.0)
            with pytest.raises(ApiError) as refused:
                await grammars.check("slow", "field")
        assert refused.value.status == 429
        checker.may_go_on.set()
        await grammars.check("slow", "field")

    asyncio.run(ask())
    assert checker.checked == ["slow"]


def test_offline_checks_wait_one_by_one_and_leave_capacity_for_others(
    counted: tuple[CheckedGrammars, CountedChecker], monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars, checker = counted
    checker.may_go_on.clear()
    monkeypatch.setattr(module, "MAX_WAITING", 2)

    async def ask() -> None:
        texts = ["a", "b", "c", "a"]
        offline = [
            asyncio.create_task(grammars.check(text, "field", patient=True)) for text in texts
        ]
        await asyncio.sleep(0)
        online = asyncio.create_task(grammars.check("online", "field"))
        await asyncio.sleep(0)
        monkeypatch.setattr(module, "MAX_WAIT_S", 0.0)  # does not hold for offline work
        checker.may_go_on.set()
        await asyncio.gather(online, *offline)

    asyncio.run(ask())
    assert checker.checked == ["a", "online", "b", "c"]


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (CheckerError("it is too small"), 400),
        (UncheckedError("the process was ended"), 503),
    ],
)
def test_other_failures_are_not_blamed_on_the_grammar_and_not_cached(
    failure: Exception, status: int, counted: tuple[CheckedGrammars, CountedChecker]
) -> None:
    grammars, checker = counted
    checker.failures["fine"] = failure
    with pytest.raises(ApiError, match=str(failure)) as refused:
        asyncio.run(grammars.check("fine", "field"))
    assert refused.value.status == status
    checker.failures.clear()
    asyncio.run(grammars.check("fine", "field"))
    assert checker.checked == ["fine", "fine"]


def test_a_check_continues_for_others_when_one_client_disconnects(
    counted: tuple[CheckedGrammars, CountedChecker],
) -> None:
    grammars, checker = counted

    async def ask() -> None:
        leaving = asyncio.create_task(grammars.check("right", "field"))
        staying = asyncio.create_task(grammars.check("right", "field"))
        await asyncio.sleep(0)
        leaving.cancel()
        await staying

    asyncio.run(ask())
    assert checker.checked == ["right"]


def test_the_number_of_cached_verdicts_is_limited(
    counted: tuple[CheckedGrammars, CountedChecker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KNOWN", 2)
    grammars, checker = counted

    async def ask() -> None:
        for text in ("a", "b", "a", "c", "b", "a"):
            await grammars.check(text, "field")

    asyncio.run(ask())
    assert checker.checked == ["a", "b", "c", "a"]


def test_a_grammar_is_measured_in_bytes(counted: tuple[CheckedGrammars, CountedChecker]) -> None:
    grammars, checker = counted
    asyncio.run(grammars.check("x" * MAX_GRAMMAR_BYTES, "field"))
    with pytest.raises(ApiError, match="larger"):
        asyncio.run(grammars.check("é" * (MAX_GRAMMAR_BYTES // 2 + 1), "field"))
    assert len(checker.checked) == 1


def test_a_grammar_for_many_completions_is_measured_with_each_of_them(daemon: Daemon) -> None:
    text = f'start: "a" // {"x" * (MAX_GRAMMAR_BYTES // 2)}'
    body: dict[str, Any] = {"structured_outputs": {"grammar": text}, "n": 64}
    assert asked(daemon, **body) == lark(text)
    error = refused(daemon, **body, prompt=["a", "b"])
    assert error["param"] == "structured_outputs"
    assert error["message"] == (
        "'structured_outputs' is too large for 128 completions: each takes a grammar of "
        f"{len(lark(text))} bytes, and {MAX_GRAMMAR_BYTES_OF_REQUEST} are allowed in all."
    )


def test_no_process_is_left_after_closing() -> None:
    before = set(psutil.Process().children())
    with closing(CheckedGrammars(TOKENIZER)) as grammars:
        asyncio.run(grammars.check(regex("a"), "field"))
        (checker,) = set(psutil.Process().children()) - before
    assert not checker.is_running()


def test_a_running_check_does_not_delay_closing(
    counted: tuple[CheckedGrammars, CountedChecker],
) -> None:
    grammars, checker = counted
    checker.may_go_on.clear()

    async def leave() -> None:
        checks = [asyncio.create_task(grammars.check(text, "field")) for text in ("a", "b")]
        await asyncio.sleep(0)
        grammars.close()
        await asyncio.gather(*checks, return_exceptions=True)

    asyncio.run(leave())
    assert "b" not in checker.checked


def test_no_field_is_no_grammar() -> None:
    assert grammar_of(None, None) == ""
