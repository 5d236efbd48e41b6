"""Grammars: parses and checks a request's constraints on the form of its answer.

Reference: https://platform.openai.com/docs/guides/structured-outputs for `response_format`,
https://docs.vllm.ai/en/latest/features/structured_outputs.html for `structured_outputs`.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any, Literal

import msgspec
from pydantic import Field

from configs.schema.grammar_limits import MAX_GRAMMAR_BYTES, MAX_GRAMMAR_BYTES_OF_REQUEST
from server.grammar import grammar_text
from server.grammar.grammar_checker import (
    CheckedVocabulary,
    CheckerError,
    GrammarChecker,
    UncheckedError,
    Verdict,
)
from server.grammar.grammar_text import WHITESPACE, Schema
from server.grammar.schema_keywords import check_keywords, check_patterns, enforceable
from server.http.bodies.body import Body, ListOf
from server.http.errors import ApiError, invalid, too_busy, unavailable
from server.text.tokenizer import Tokenizer

MAX_CHOICES = 4096
# The checker's process converts EBNF to Lark, in Python: usually in some 10 ms, at worst in 3 s.
MAX_EBNF_CHARACTERS = 16 * 1024
# The number of cached verdicts (for EBNF, with the Lark form), the number of checks that may wait,
# and how long they may wait.
MAX_KNOWN = 1024
MAX_WAITING = 16
MAX_WAIT_S = 20.0


class JsonSchemaFormat(Body):
    """The schema of a JSON answer."""

    closed = True  # an unknown field may be a constraint

    name: str = Field(min_length=1, max_length=64, description="for the client's own use")
    description: str | None = Field(None, description="accepted and ignored")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="[any object]")
    strict: bool | None = Field(
        None,
        description="true: refuse keywords that cannot be enforced; false: skip them [false]",
    )


class ResponseFormat(Body):
    """The form of an answer."""

    closed = True

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(None, description="for type json_schema")


class StructuredOutputs(Body):
    """vLLM's structured_outputs: constrains the answer by exactly one of the first five fields."""

    closed = True

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="a JSON schema")
    regex: str | None = Field(None, description="a regular expression for the whole answer")
    choice: ListOf[str] | None = Field(None, description="one of these texts")
    grammar: str | None = Field(None, description="a Lark or EBNF grammar")
    json_object: bool = Field(False, description="any JSON object")
    whitespace_pattern: str | None = Field(
        None, description="a regular expression for the white space in JSON"
    )
    disable_any_whitespace: bool = Field(False, description="compact JSON")


def grammar_of(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> str:
    """Return the grammar that a request asks for; empty for none.

    The grammar is not checked yet, see `CheckedGrammars.check`. Raises `ApiError` (400).
    """
    from_format = _of_format(response_format) if response_format is not None else ""
    if structured_outputs is None:
        return from_format
    if from_format:
        message = "'response_format' and 'structured_outputs' cannot both be used."
        raise invalid(message, "structured_outputs", "invalid_value")
    return _of_outputs(structured_outputs)


class CheckedGrammars:
    """Checks each grammar once for one model; all methods must be called from one asyncio loop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        # An end token in the padding of the vocabulary is unknown to the library.
        ends = (id_ for id_ in tokenizer.eos_token_ids if id_ < tokenizer.num_ids)
        vocabulary = CheckedVocabulary(
            tokenizer.serialised or "", next(ends, None), tokenizer.vocab_size
        )
        self._checker = GrammarChecker(vocabulary)
        # The thread stays alive: the parent-death signal fires when the starting thread ends.
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._known: OrderedDict[bytes, Verdict] = OrderedDict()
        self._waiting: dict[bytes, asyncio.Future[Verdict]] = {}
        self._patient_queue = asyncio.Lock()

    def close(self) -> None:
        """End the process, the thread, and any running check."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._checker.close()
        self._thread.shutdown()
        self._checker.close()  # the process may have been started in between

    async def check(
        self, grammar: str, param: str, *, copies: int = 1, patient: bool = False
    ) -> str:
        """Check the grammar that the field `param` asks for; return it in a form for the stages.

        The grammar is sent with each of `copies` sequences. Raises `ApiError`: 400 for an invalid
        grammar, 429 if other checks take too long, 503 if the check did not finish. A `patient`
        caller waits for other checks without limit.
        """
        if not grammar:
            return ""
        encoded = grammar.encode()
        _check_size(len(encoded), param, copies)
        try:
            verdict = await self._verdict(sha256(encoded).digest(), grammar, patient=patient)
        except CheckerError as error:
            message = f"'{param}' is not supported: {error}."
            raise invalid(message, param, "unsupported_parameter") from error
        except UncheckedError as error:
            message = f"'{param}' could not be checked: {error}."
            raise unavailable(message, reason="grammar_checker") from error
        if verdict.complaint:
            raise invalid(f"'{param}' {verdict.complaint}.", param, "invalid_value")
        if verdict.lark:
            _check_size(len(verdict.lark.encode()), param, copies)
        return verdict.lark or grammar

    async def _verdict(self, digest: bytes, grammar: str, *, patient: bool) -> Verdict:
        if digest in self._known:
            return self._known[digest]
        if patient:
            async with self._patient_queue:  # one by one, to leave capacity for others
                return await self._checked(digest, grammar)
        message = "Too many new grammars are being checked. Please retry shortly."
        busy = too_busy(message, "grammar_checker")
        if len(self._waiting) >= MAX_WAITING and digest not in self._waiting:
            raise busy
        try:
            async with asyncio.timeout(MAX_WAIT_S):
                return await self._checked(digest, grammar)
        except TimeoutError:
            raise busy from None

    async def _checked(self, digest: bytes, grammar: str) -> Verdict:
        if digest in self._known:  # checked for another request while this one waited
            return self._known[digest]
        check = self._waiting.get(digest)
        if check is None:
            loop = asyncio.get_running_loop()
            check = loop.run_in_executor(self._thread, self._checker.check, grammar)
            check.add_done_callback(lambda done: self._note(digest, done))
            self._waiting[digest] = check
        # Shielded: others may wait for the same check, and later requests use its verdict.
        return await asyncio.shield(check)

    def _note(self, digest: bytes, check: asyncio.Future[Verdict]) -> None:
        del self._waiting[digest]
        if check.cancelled() or check.exception() is not None:
            return
        self._known[digest] = check.result()
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)


def check_text(num_characters: int, param: str) -> None:
    """Raise `ApiError` (400) if the source of a grammar is too long."""
    if num_characters > MAX_GRAMMAR_BYTES:
        limit = f"{MAX_GRAMMAR_BYTES // 1024} KiB"
        raise invalid(f"'{param}' is larger than {limit}.", param, "invalid_value")


def _check_size(num_bytes: int, param: str, copies: int) -> None:
    check_text(num_bytes, param)
    if num_bytes * copies > MAX_GRAMMAR_BYTES_OF_REQUEST:
        message = (
            f"'{param}' is too large for {copies} completions: each takes a grammar of "
            f"{num_bytes} bytes, and {MAX_GRAMMAR_BYTES_OF_REQUEST} are allowed in all."
        )
        raise invalid(message, param, "invalid_value")


def _of_format(response_format: ResponseFormat) -> str:
    if response_format.type == "text":
        return ""
    if response_format.type == "json_object":
        return grammar_text.json_object()
    wanted = response_format.json_schema
    if wanted is None:
        message = "Missing required parameter: 'response_format.json_schema'."
        raise invalid(message, "response_format", "missing_required_parameter")
    schema = {"type": "object"} if wanted.schema_ is None else wanted.schema_
    path = "response_format.json_schema.schema"
    check_keywords(schema, path)
    if wanted.strict:
        check_patterns(schema, path)
    return grammar_text.json_schema(enforceable(schema), lenient=not wanted.strict)


def _of_outputs(wanted: StructuredOutputs) -> str:
    kinds = {
        "json": wanted.json_,
        "regex": wanted.regex,
        "choice": wanted.choice,
        "grammar": wanted.grammar,
        "json_object": wanted.json_object or None,
    }
    given = [kind for kind, value in kinds.items() if value is not None]
    if len(given) != 1:
        raise _wrong(f"must have exactly one of {', '.join(kinds)}, not {len(given)}")
    whitespace = None if wanted.disable_any_whitespace else wanted.whitespace_pattern or WHITESPACE
    if wanted.json_ is not None:
        schema = _decoded(wanted.json_)
        check_keywords(schema, "structured_outputs.json")
        check_patterns(schema, "structured_outputs.json")
        return grammar_text.json_schema(schema, whitespace=whitespace)
    if wanted.regex is not None:
        return grammar_text.regex(wanted.regex)
    if wanted.choice is not None:
        if not 0 < len(wanted.choice) <= MAX_CHOICES:
            raise _wrong(f"must have 1 to {MAX_CHOICES} choices")
        check_text(sum(map(len, wanted.choice)), "structured_outputs")
        return grammar_text.choice(wanted.choice)
    if wanted.grammar is not None:
        return _of_text(wanted.grammar)
    return grammar_text.json_object(whitespace)


def _of_text(text: str) -> str:
    if "::=" not in text:
        return grammar_text.lark(text)
    if len(text) > MAX_EBNF_CHARACTERS:
        limit = f"{MAX_EBNF_CHARACTERS} characters"
        raise _wrong(f"has an EBNF grammar of more than {limit}; write it in Lark")
    return grammar_text.ebnf(text)


def _decoded(schema: dict[str, Any] | str) -> Schema | bool:
    if isinstance(schema, dict):
        return schema
    try:
        return msgspec.json.decode(schema, type=dict[str, Any] | bool)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _wrong(f"has a JSON schema that cannot be read: {error}") from error


def _wrong(words: str) -> ApiError:
    return invalid(f"'structured_outputs' {words}.", "structured_outputs", "invalid_value")
