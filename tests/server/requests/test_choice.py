"""A choice: stop strings that name special tokens, against a twin that looks at whole tokens."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from server.requests.choice import Choice
from server.requests.planning.plan import Plan
from server.text.prompt_end import NO_PROMPT
from server.text.special_stops import find_special_tokens
from server.text.tokenizer import Tokenizer
from tests.server.templates import chatty
from tests.server.world import END, byte_fallback_core

X, Y = "<|x|>", "<|x|>y"
TOKENIZER = chatty(None, X, Y)
IDS = TOKENIZER.special_tokens
LETTERS = {letter: TOKENIZER.encode_plain(letter)[0] for letter in "ab\n"}
ID_OF = IDS | LETTERS

tokens = st.lists(st.sampled_from([*LETTERS, X, Y, END]), max_size=12)
stop_lists = st.lists(
    st.lists(st.sampled_from([*LETTERS, X, Y, END]), min_size=1, max_size=3).map("".join),
    min_size=1,
    max_size=3,
)


def plan_of(stops: Sequence[str], tokenizer: Tokenizer = TOKENIZER, **values: object) -> Plan:
    special_stops = find_special_tokens(stops, tokenizer.special_tokens)
    values = {"stop_strings": stops, "special_stops": special_stops} | values
    return Plan([[5]], 1, [99], **values)  # type: ignore[arg-type]


Result = tuple[str, str | None, str | int | None]


def run(plan: Plan, pieces: Sequence[Sequence[int]], tokenizer: Tokenizer = TOKENIZER) -> Result:
    """Text, finish reason and stop reason of a choice after all pieces, or after its end."""
    choice = Choice(plan, tokenizer, NO_PROMPT)
    text = ""
    for piece in pieces:
        text += choice.push(list(piece))
        if choice.finish_reason is None and not set(plan.stop_token_ids).isdisjoint(piece):
            text += choice.flush("stop")
        if choice.finish_reason is not None:
            return text, choice.finish_reason, choice.stop_reason
    text += choice.flush("length")
    return text, choice.finish_reason, choice.stop_reason


def one_shot(names: Sequence[str], stops: Sequence[str], *, skips: bool, include: bool) -> Result:
    """The reference: grow the text until it ends in a stop string; END ends it in any case."""
    named = find_special_tokens(stops, IDS)
    units: list[str] = []  # what is compared: letters, and special tokens as a whole if omitted
    shown: list[str] = []  # what of each is shown
    for name in names:
        is_hidden = name == END or (skips and name in IDS)
        is_compared = name in named or not is_hidden
        for unit in [name] if is_hidden else name:
            units += [unit] * is_compared
            shown += ["" if is_hidden else unit] * is_compared
            ends = {
                stop: i
                for stop in stops
                for i in range(len(units))
                if is_compared and "".join(units[i:]) == stop
            }
            if ends:
                stop = max(ends, key=len)
                return "".join(shown[: ends[stop]]) + stop * include, "stop", stop
        if name == END:
            return "".join(shown), "stop", None
    return "".join(shown), "length", None


@settings(max_examples=500)
@given(tokens, stop_lists, st.booleans(), st.booleans(), st.data())
def test_special_tokens_in_stop_strings_are_found_as_in_one_shot(
    names: list[str], stops: list[str], skips: bool, include: bool, data: st.DataObject
) -> None:
    plan = plan_of(
        stops,
        skip_special_tokens=skips,
        include_stop=include,
        stop_token_ids=frozenset({IDS[END]}),
    )
    ids = [ID_OF[name] for name in names]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=4)))
    pieces = [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert run(plan, pieces) == one_shot(names, stops, skips=skips, include=include)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(
    ("stop", "before"), [(X, "ab"), (f"{X}\na", "ab"), (f"b{X}", "a"), (f"b{X}\na", "a")]
)
def test_a_stop_string_with_a_special_token_stops_whatever_is_omitted(
    stop: str, before: str, include: bool, skips: bool
) -> None:
    plan = plan_of([stop], skip_special_tokens=skips, include_stop=include)
    ids = TOKENIZER.encode_plain(f"ab{X}\nab")
    assert run(plan, [[id_] for id_ in ids]) == (before + stop * include, "stop", stop)
    assert run(plan, [ids]) == (before + stop * include, "stop", stop)


@pytest.mark.parametrize("skips", [True, False])
@pytest.mark.parametrize("include", [True, False])
def test_an_end_token_that_is_also_a_stop_string_is_named_and_included(
    include: bool, skips: bool
) -> None:
    ends = frozenset({IDS[END]})
    values = {"skip_special_tokens": skips, "include_stop": include, "stop_token_ids": ends}
    ids = TOKENIZER.encode_plain(f"ab{END}")
    assert run(plan_of([END], **values), [ids]) == ("ab" + END * include, "stop", END)
    assert run(plan_of([f"b{END}"], **values), [ids])[2] == f"b{END}"
    assert run(plan_of([f"{END}a"], **values), [ids]) == ("ab", "stop", None)


def test_a_part_of_a_special_token_is_no_match_unless_it_is_in_the_text() -> None:
    ids = TOKENIZER.encode_plain(f"a{X}b")
    assert run(plan_of(["x"]), [ids]) == ("ab", "length", None)
    assert run(plan_of(["x", f"{X}z"]), [ids]) == ("ab", "length", None)
    assert run(plan_of(["x"], skip_special_tokens=False), [ids]) == ("a<|", "stop", "x")


def test_a_special_token_that_ordinary_tokens_spell_is_found_too() -> None:
    ids = [id_ for letter in f"a{X}b" for id_ in TOKENIZER.encode_plain(letter)]
    assert run(plan_of([X]), [[id_] for id_ in ids]) == ("a", "stop", X)


def test_special_tokens_before_min_tokens_are_omitted() -> None:
    ids = TOKENIZER.encode_plain(f"{X}a{X}b{X}")
    assert run(plan_of([X], min_tokens=4), [ids]) == ("ab", "stop", X)


def byte_fallback() -> Tokenizer:
    """Bytes are tokens, which are held back until a token of another kind."""
    wrapper = PreTrainedTokenizerFast(tokenizer_object=byte_fallback_core(), eos_token="</s>")
    wrapper.add_special_tokens({"additional_special_tokens": [X]})
    return Tokenizer(wrapper)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_fallback()], ids=["level", "fallback"])
@pytest.mark.parametrize("stop", [X, f"é{X}", f"{X}é"])
def test_characters_that_are_held_back_come_before_a_special_token(
    stop: str, tokenizer: Tokenizer
) -> None:
    e = [0xC3, 0xA9] if tokenizer is not TOKENIZER else TOKENIZER.encode_plain("é")
    x = tokenizer.special_tokens[X]
    for skips in (True, False):
        plan = plan_of([stop], tokenizer, skip_special_tokens=skips)
        before = "é" if stop.startswith(X) else ""
        assert run(plan, [[id_] for id_ in (*e, x, *e)], tokenizer) == (before, "stop", stop)


@pytest.mark.parametrize("tokenizer", [TOKENIZER, byte_fallback()], ids=["level", "fallback"])
def test_the_text_around_special_tokens_is_that_without_stop_strings(tokenizer: Tokenizer) -> None:
    e = [0xC3, 0xA9] if tokenizer is not TOKENIZER else TOKENIZER.encode_plain("é")
    x = tokenizer.special_tokens[X]
    for ids in ([*e, x, *e], [e[0], x, e[1]], [x, e[0], x, x, e[0]], [x], [*e, x]):
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        pieces = [[id_] for id_ in ids]
        assert run(plan_of([f"{X}never"], tokenizer), pieces, tokenizer)[0] == expected


def test_a_character_before_a_special_token_is_not_lost_to_broken_bytes_after_it() -> None:
    tokenizer = byte_fallback()
    pieces = [[id_] for id_ in (0xC3, 0xA9, tokenizer.special_tokens[X], 0xC3)]
    assert run(plan_of([f"{X}never"], tokenizer), pieces, tokenizer)[0] == "é\ufffd"
