"""Detokenization: pieces add up to the one-shot decoding and hold only whole characters."""

from collections.abc import Callable
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from server.text.detokenizer import Detokenizer, FastDetokenizer, WindowDetokenizer
from tests.server.world import TOKENIZER, byte_fallback_core, byte_level_tokenizer

CORE = byte_level_tokenizer().backend_tokenizer
FALLBACK = byte_fallback_core()
END_OF_FALLBACK = FALLBACK.get_vocab()["</s>"]
STICKY = frozenset({*range(256), END_OF_FALLBACK})

any_tokens = st.lists(st.integers(0, CORE.get_vocab_size() - 1), max_size=30)
# Bytes of "€" and others that break it, words, and the special token.
fallback_tokens = st.lists(
    st.sampled_from([0xE2, 0x82, 0xAC, 0xFF, 0x41, *range(256, END_OF_FALLBACK + 1)]), max_size=16
)


def pieces(detokenizer: Detokenizer, token_ids: list[int]) -> list[str]:
    return [*(detokenizer.push(id_) for id_ in token_ids), detokenizer.flush()]


def decode(token_ids: list[int]) -> str:
    return str(CORE.decode(token_ids, skip_special_tokens=True))


@given(any_tokens)
def test_any_tokens_sum_up_to_the_one_shot_text(token_ids: list[int]) -> None:
    assert "".join(pieces(FastDetokenizer(CORE), token_ids)) == decode(token_ids)


@given(any_tokens)
def test_any_tokens_sum_up_in_the_window_too(token_ids: list[int]) -> None:
    assert "".join(pieces(WindowDetokenizer(decode), token_ids)) == decode(token_ids)


@given(fallback_tokens)
def test_byte_tokens_sum_up_to_the_one_shot_text(token_ids: list[int]) -> None:
    whole = FALLBACK.decode(token_ids, skip_special_tokens=True)
    assert "".join(pieces(FastDetokenizer(FALLBACK, STICKY), token_ids)) == whole


@given(st.text(max_size=20))
def test_no_piece_of_a_valid_text_ends_in_half_a_character(text: str) -> None:
    make: list[Callable[[], Detokenizer]] = [
        TOKENIZER.detokenizer,
        partial(WindowDetokenizer, decode),
    ]
    for new in make:
        shown = pieces(new(), CORE.encode(text).ids)
        assert "".join(shown) == text
        assert all("\ufffd" not in piece for piece in shown) or "\ufffd" in text


def test_a_euro_appears_with_its_last_byte() -> None:
    token_ids = CORE.encode("a€b").ids
    assert pieces(FastDetokenizer(CORE), token_ids) == ["a", "", "", "€", "b", ""]


def test_a_broken_character_at_the_end_is_shown_at_the_end() -> None:
    token_ids = CORE.encode("a€").ids[:-1]
    assert pieces(FastDetokenizer(CORE), token_ids) == ["a", "", "", "\ufffd"]


def test_special_tokens_have_no_text() -> None:
    assert pieces(FastDetokenizer(CORE), [0, *CORE.encode("a").ids, 1]) == ["", "a", "", ""]
