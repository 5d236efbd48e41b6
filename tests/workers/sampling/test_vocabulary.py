"""The vocabulary as the last stage loads it: from a checkpoint's own files."""

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from configs.schema.model import DEMO_MODEL, ModelConfig
from tests.checkpoints import make_tokenizer
from tests.server.world import byte_level_tokenizer
from tests.workers.vocabularies import ids_in
from workers.sampling.vocabulary import VocabularyError, load, make


def test_the_model_s_own_tokenizer_is_loaded() -> None:
    vocabulary = load(ModelConfig(), 768)
    assert vocabulary.eos_token_id == 0
    assert vocabulary.tokenizer.decode_bytes(AutoTokenizer.from_pretrained(DEMO_MODEL).encode("é"))
    assert ids_in(vocabulary.known) == set(range(768))


def test_another_tokenizer_may_be_named(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    vocabulary = load(ModelConfig(tokenizer=str(tmp_path)), 768)
    assert ids_in(vocabulary.known) == set(range(len(tokenizer)))
    assert vocabulary.tokenizer.vocab_size == 768


def test_a_head_may_be_narrower_than_the_tokenizer() -> None:
    vocabulary = load(ModelConfig(), 700)
    assert ids_in(vocabulary.known) == set(range(700))


@pytest.mark.parametrize("text", [None, "{", '{"version": "1.0"}'])
def test_a_missing_or_damaged_tokenizer_is_reported_in_one_line(
    text: str | None, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(VocabularyError, match="cannot load the tokenizer"):
        load(ModelConfig(model=str(tmp_path)), 768)


def test_a_tokenizer_with_tokens_that_are_not_bytes_is_refused() -> None:
    core = make_tokenizer(20).backend_tokenizer
    with pytest.raises(ValueError, match="decoder"):
        make(core.to_str(), core.get_vocab().values(), 20, 2)


def test_without_an_end_token_one_is_found() -> None:
    core = AutoTokenizer.from_pretrained(DEMO_MODEL).backend_tokenizer
    vocabulary = make(core.to_str(), core.get_vocab().values(), 768, None)
    assert vocabulary.eos_token_id == 0
    assert vocabulary.known.dtype == np.uint32
