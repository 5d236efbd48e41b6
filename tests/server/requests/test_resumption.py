"""What is shown after some tokens depends only on these, and not on how many came at once."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from server.chat.call_formats import FORMATS
from server.chat.message_parser import MessageParser
from server.chat.reasoning import ReasoningSplitter
from server.chat.tool_calls import CallParser
from server.requests.choice import Choice
from server.requests.planning.plan import Plan
from server.text.prompt_end import NO_PROMPT
from server.text.tokenizer import Tokenizer
from tests.server.splitting import texts_of
from tests.server.world import END, TOKENIZER, byte_fallback_core

SCHEMAS = {"add": {"type": "object", "properties": {"a": {"type": "integer"}}}, "b": {}}
WORDS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<|python_tag|>"),
    *('{"name": "add", "arguments": {"a": 1}}', '{"name": "b", "parameters": {}}', "add[ARGS]"),
    *("<function=add>\n<parameter=a>\n1\n</parameter>\n</function>", "; ", "[", "]", "\n"),
)
STOPS = ["\n1", "ab", "é€", END]
FALLBACK = Tokenizer(
    PreTrainedTokenizerFast(tokenizer_object=byte_fallback_core(), eos_token="</s>")
)

Shown = tuple[str, str, list[list[str]], str | None]
groups = st.lists(st.integers(1, 6), max_size=40)


class Output:
    """What a client has seen of a choice."""

    def __init__(self, tokenizer: Tokenizer, plan: Plan, parser: MessageParser) -> None:
        self._choice, self._parser = Choice(plan, tokenizer, NO_PROMPT), parser
        self._reasoning, self._content, self._calls = "", "", list[list[str]]()

    def push(self, token_ids: Sequence[int]) -> None:
        """Some tokens arrive together."""
        if self._choice.finish_reason is not None:
            return
        text = self._choice.push(list(token_ids))
        delta = self._parser.push(text, is_last=self._choice.finish_reason is not None)
        self._reasoning += delta.reasoning
        self._content += delta.content
        for call in delta.calls:
            if call.name is not None:
                self._calls.append([call.name, ""])
            self._calls[call.call_index][1] += call.arguments

    @property
    def shown(self) -> Shown:
        """All of it."""
        calls = [list(call) for call in self._calls]
        return self._reasoning, self._content, calls, self._choice.finish_reason


def parser_of(name: str, *, thinks: bool, only_whole: bool) -> MessageParser:
    """A parser of a model's messages."""
    splitter = ReasoningSplitter() if thinks else None
    calls = CallParser(FORMATS[name], SCHEMAS, only_whole=only_whole)
    return MessageParser(splitter, calls)


def check(
    tokenizer: Tokenizer, plan: Plan, token_ids: Sequence[int], sizes: Sequence[int], *args: object
) -> None:
    """Compare tokens in groups with the same tokens one by one, after each group."""
    name, thinks, only_whole = args
    grouped, single = (
        Output(
            tokenizer,
            plan,
            parser_of(str(name), thinks=bool(thinks), only_whole=bool(only_whole)),
        )
        for _ in range(2)
    )
    rest = list(token_ids)
    for size in [*sizes, len(rest)]:
        group, rest = rest[:size], rest[size:]
        grouped.push(group)
        for token_id in group:
            single.push([token_id])
        assert grouped.shown == single.shown


@pytest.mark.parametrize("name", FORMATS)
@given(text=texts_of(*WORDS), sizes=groups, thinks=st.booleans(), only_whole=st.booleans())
def test_messages_do_not_depend_on_groups(
    name: str, text: str, sizes: list[int], thinks: bool, only_whole: bool
) -> None:
    plan = Plan([[5]], 1, [999])
    check(TOKENIZER, plan, TOKENIZER.encode(text), sizes, name, thinks, only_whole)


@given(
    text=texts_of(*STOPS, *WORDS[:4]),
    sizes=groups,
    stops=st.lists(st.sampled_from(STOPS), min_size=1, max_size=3),
    min_tokens=st.integers(0, 9),
    include=st.booleans(),
)
def test_texts_with_stop_strings_do_not_depend_on_groups(
    text: str, sizes: list[int], stops: list[str], min_tokens: int, include: bool
) -> None:
    special = {END: TOKENIZER.special_tokens[END]} if END in stops else {}
    plan = Plan(
        [[5]],
        1,
        [999],
        stop_strings=stops,
        special_stops=special,
        min_tokens=min_tokens,
        include_stop=include,
    )
    check(TOKENIZER, plan, TOKENIZER.encode(text), sizes, "hermes", True, False)


@given(token_ids=st.lists(st.integers(0, 262), max_size=40), sizes=groups)
def test_bytes_that_are_no_characters_do_not_depend_on_groups(
    token_ids: list[int], sizes: list[int]
) -> None:
    check(FALLBACK, Plan([[5]], 1, [999]), token_ids, sizes, "hermes", False, False)
