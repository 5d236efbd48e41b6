"""Token texts: they and their offsets agree with the text that the detokenizer gives."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.text.token_texts import PlacedToken, text_at
from server.text.tokenizer import Tokenizer
from tests.server.text.tokenizer_kinds import KINDS, num_ids, tokenizer_of

BYTE_KINDS = [kind for kind in KINDS if "byte" in kind]
LLAMA = tokenizer_of("byte fallback, as Llama 2")


def placed(
    tokenizer: Tokenizer, token_ids: list[int], prompt: list[int] | None = None
) -> list[PlacedToken]:
    after = tokenizer.prompt_end(prompt or [])
    texts = tokenizer.token_texts(after=after)
    return [texts.push(token_id) for token_id in token_ids]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_token_is_found_at_its_offset(kind: str, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    token_ids = data.draw(st.lists(st.integers(0, num_ids(tokenizer) - 1), max_size=12))
    whole = tokenizer.decode(token_ids)
    texts = tokenizer.token_texts()
    tokens = [texts.push(token_id) for token_id in token_ids]
    texts.flush()
    assert texts.num_characters == len(whole)
    for token in tokens:
        if token.text is not None:
            assert whole.startswith(token.text, token.offset)
    offsets = [token.offset for token in tokens]
    if "\ufffd" not in whole:
        assert offsets == sorted(offsets)


@pytest.mark.parametrize("kind", BYTE_KINDS)
@settings(max_examples=40)
@given(text=st.text(st.sampled_from("aé€\U0001f600 \n"), max_size=10))
def test_the_tokens_of_a_character_begin_where_it_begins(kind: str, text: str) -> None:
    tokenizer = tokenizer_of(kind)
    token_ids = tokenizer.encode_plain("a" + text)
    whole = tokenizer.decode(token_ids)
    tokens = placed(tokenizer, token_ids)
    num_bytes = 0
    for token_id, token in zip(token_ids, tokens, strict=True):
        before = whole.encode()[:num_bytes].decode(errors="ignore")
        assert token.offset == len(before)
        own = tokenizer.pieces.bytes(token_id)
        num_bytes += len(own if token.text is None else token.text.encode())


def test_each_character_of_a_run_of_byte_tokens_has_its_own_offset() -> None:
    tokens = [258, *"€é".encode(), 0x41, 262, 259]
    assert [token.offset for token in placed(LLAMA, tokens)] == [0, 1, 1, 1, 2, 2, 3, 4, 4]


def test_a_token_of_a_space_and_half_a_character_ends_in_that_character() -> None:
    tokens = [*b"a", 259, 260, *b"b"]  # "a", " \xe2", "\x82\xac", "b"
    tokenizer = tokenizer_of("Python bytes")
    assert tokenizer.decode(tokens) == "a €b"
    assert [token.offset for token in placed(tokenizer, tokens)] == [0, 1, 2, 3]


def test_a_broken_character_has_an_offset_of_its_own() -> None:
    tokenizer = tokenizer_of("Python bytes")
    tokens = [0xE2, 0xE2, 0x82, 0xAC, 0x41]
    assert tokenizer.decode(tokens) == "\ufffd€A"
    assert [token.offset for token in placed(tokenizer, tokens)] == [0, 1, 1, 1, 2]


def test_the_first_token_of_a_text_has_no_space_and_the_first_of_an_output_has() -> None:
    world = [260, 261]  # "▁wor", "ld"
    assert [token.text for token in placed(LLAMA, world)] == ["wor", "ld"]
    assert [token.text for token in placed(LLAMA, world, [262])] == ["wor", "ld"]
    assert [token.text for token in placed(LLAMA, world, [256])] == [" wor", "ld"]


def test_candidates_for_the_first_place_of_a_text_have_no_space_either() -> None:
    first, second = placed(LLAMA, [260, 261])
    pieces = LLAMA.pieces
    assert text_at(first, 260, pieces, is_placed=True) == "wor"
    assert text_at(first, 256, pieces, is_placed=False) == "hello"
    assert text_at(second, 256, pieces, is_placed=False) == " hello"


def test_the_offsets_of_a_normalised_prompt_are_those_in_its_own_text() -> None:
    tokenizer = tokenizer_of("byte level with a prefix space")
    text = "hello world é!"
    token_ids = tokenizer.encode(text)
    offsets = tokenizer.offsets(text, token_ids)
    assert offsets is not None
    assert tokenizer.decode(token_ids) == " " + text
    assert offsets[0] == 0
    assert offsets[-1] == text.index("!")
    assert tokenizer.offsets(text + "x", token_ids) is None
    assert tokenizer_of("Python bytes").offsets("a", [0x61]) is None
