"""Reasoning is separated from the answer, however the text is split into pieces."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.reasoning import (
    BEGIN,
    END,
    ReasoningCounter,
    ReasoningSplitter,
    format_of,
    leaves_open,
)
from tests.server.splitting import PLACES, cut, texts_of


def split(pieces: list[str], *, opened: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(opened=opened)
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nLet me see.\n</think>\n\nSeven.", False, ("Let me see.", "Seven.")),
        ("\n<think>a b</think>c", False, ("a b", "c")),
        ("Seven.", False, ("", "Seven.")),
        (" Seven <think>not</think>", False, ("", " Seven <think>not</think>")),
        ("<think>cut off", False, ("cut off", "")),
        ("<think>cut off</thi", False, ("cut off</thi", "")),
        ("<thin", False, ("", "<thin")),
        ("Let me see.\n</think>\nSeven.", True, ("Let me see.", "Seven.")),
        ("<think>again</think>Seven.", True, ("again", "Seven.")),
        ("cut off", True, ("cut off", "")),
        ("<thi", True, ("<thi", "")),
        ("</think>Seven.", True, ("", "Seven.")),
        ("<think>\n\n</think>\n\nSeven.", False, ("", "Seven.")),
        ("<think>a</think>b</think>c", False, ("a", "b</think>c")),
    ],
)
def test_reasoning_and_answer(text: str, opened: bool, expected: tuple[str, str]) -> None:
    assert split([text], opened=opened) == expected


TEXTS = st.tuples(
    st.sampled_from(["", BEGIN, f"\n{BEGIN}\n"]), texts_of(BEGIN, END, "<thi", "nk>", "\n\n")
).map("".join)


@settings(deadline=None)
@given(TEXTS, PLACES, st.booleans())
def test_the_pieces_do_not_matter(text: str, places: list[int], opened: bool) -> None:
    whole = split([text], opened=opened)
    assert split(cut(text, places), opened=opened) == whole
    assert split(list(text), opened=opened) == whole


@settings(deadline=None)
@given(TEXTS, st.booleans())
def test_nothing_is_lost_but_tags_and_white_space(text: str, opened: bool) -> None:
    def bare(part: str) -> str:
        return "".join(part.replace(BEGIN, "").replace(END, "").split())

    reasoning, answer = split([text], opened=opened)
    assert bare(reasoning) + bare(answer) == bare(text)


def test_a_begin_tag_in_the_prompt_is_recognised() -> None:
    assert leaves_open("<|im_start|>assistant\n<think>\n")
    assert not leaves_open("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not leaves_open("<|im_start|>assistant\n")


def test_the_reasoning_format_is_detected_from_the_template() -> None:
    assert format_of("{{ content.split('</think>')[-1] }}") == "think"
    assert format_of("{{ content }}") == "none"


@pytest.mark.parametrize(
    ("tokens", "opened", "num_tokens"),
    [
        (["<think>", "a", " b", "</think>", "\n\n", "Seven"], False, 4),
        (["<", "think", ">", "a", "</", "think", ">", "Seven"], False, 7),
        (["", "<think>", "", "é", "</think>", "Seven"], False, 5),
        (["<think>", "</think>", "Seven"], False, 2),
        (["<think>", "a"], False, 2),
        (["a", "</think>", "Seven"], True, 2),
        (["\n", "a"], True, 2),
        (["Seven", "<think>", "a", "</think>"], False, 0),
        (["<", "b", ">"], False, 0),
        ([], True, 0),
    ],
)
def test_tokens_of_reasoning_are_counted_with_their_tags(
    tokens: list[str], *, opened: bool, num_tokens: int
) -> None:
    counter = ReasoningCounter(opened=opened)
    for token in tokens:
        counter.push(token)
    assert counter.num_tokens == num_tokens
