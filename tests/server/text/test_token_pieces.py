"""Token pieces: joined they are the text, and their bytes are its bytes."""

import pytest
from transformers import PreTrainedTokenizerFast

from configs.schema.model import DEMO_MODEL, ModelConfig
from server.text.tokenizer import Tokenizer, load_tokenizer
from tests.server.world import TOKENIZER, byte_fallback_core

DEMO = load_tokenizer(ModelConfig(model=str(DEMO_MODEL)))
FALLBACK = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=byte_fallback_core()))


@pytest.mark.parametrize("tokenizer", [DEMO, TOKENIZER], ids=["demo", "byte level"])
@pytest.mark.parametrize("text", ["hello world", " a  b", "naïve €5 ✓", "\n\tx"])
def test_the_pieces_of_a_text_are_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    token_ids = tokenizer.encode_plain(text)
    found = [byte for id_ in token_ids for byte in tokenizer.pieces.bytes(id_)]
    assert bytes(found) == text.encode()
    if text.isascii():
        assert "".join(map(tokenizer.pieces.text, token_ids)) == text


def test_a_words_leading_space_is_kept() -> None:
    word = 256  # "▁hello"
    assert FALLBACK.decode([word]) == "hello"
    assert FALLBACK.pieces.text(word) == " hello"


def test_a_byte_token_is_its_byte() -> None:
    assert FALLBACK.pieces.bytes(0xE2) == [0xE2]
    assert FALLBACK.pieces.text(0xE2) == "\ufffd"
    assert FALLBACK.pieces.bytes(0x41) == [0x41]


def test_a_special_token_has_its_own_text() -> None:
    assert TOKENIZER.pieces.text(0) == "<|end|>"
    assert bytes(TOKENIZER.pieces.bytes(0)) == b"<|end|>"
