"""The tokenizer: equal to transformers', with clear errors when it is missing or damaged."""

import asyncio
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import ByT5Tokenizer

from configs.schema.model import ModelConfig
from server.text.tokenizer import MAX_INLINE_CHARACTERS, Tokenizer, TokenizerError, load_tokenizer
from tests.server.world import byte_level_tokenizer, save_model

WRAPPER = byte_level_tokenizer(begin=True)
TOKENIZER = Tokenizer(byte_level_tokenizer(begin=True))


def load(folder: Path) -> Tokenizer:
    return load_tokenizer(ModelConfig.model_validate({"model": str(folder)}))


@given(st.text(max_size=40))
def test_a_prompt_is_encoded_as_transformers_does(text: str) -> None:
    assert TOKENIZER.encode(text) == WRAPPER(text)["input_ids"]


def test_a_prompt_begins_with_the_begin_token_where_the_model_has_one() -> None:
    assert TOKENIZER.encode("hello")[0] == 1


def test_code_beside_the_tokenizer_is_not_run_unless_asked_for(tmp_path: Path) -> None:
    folder, trace = save_model(tmp_path), tmp_path / "trace"
    (folder / "custom.py").write_text(
        f"from pathlib import Path\nPath({str(trace)!r}).touch()\nclass Custom: ...\n"
    )
    auto_map = {"AutoTokenizer": ["custom.Custom", None], "AutoConfig": "custom.Custom"}
    for name in ("tokenizer_config.json", "config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | {"auto_map": auto_map}))
    assert load(folder).encode("hello"), "transformers has a class of its own for it"
    values = json.loads((folder / "tokenizer_config.json").read_text())
    values["tokenizer_class"] = "Custom"
    (folder / "tokenizer_config.json").write_text(json.dumps(values))
    with suppress(TokenizerError):
        load(folder)
    assert not trace.exists()


def test_long_texts_are_encoded_as_short_ones_are() -> None:
    long = "the quick brown fox " * (MAX_INLINE_CHARACTERS // 10)
    token_ids = asyncio.run(TOKENIZER.encode_all([long, "fox"]))
    assert token_ids == [TOKENIZER.encode(long), TOKENIZER.encode("fox")]


def test_the_end_tokens_are_those_of_all_files_and_of_the_tokenizer(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    assert load(folder).eos_token_ids == (0,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 7]}')
    tokenizer = load(folder)
    assert tokenizer.eos_token_ids == (8, 7, 0)
    assert tokenizer.end_token_ids == {
        "generation_config.json": (8, 7),
        "config.json": (0,),
        "tokenizer": (0,),
    }


@pytest.mark.parametrize("value", ["null", "-1", '"</s>"', "true", "[null, -1]", "2.5", "{}"])
def test_an_end_token_that_is_no_id_is_ignored(value: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
    assert load(folder).eos_token_ids == (0,)


def test_the_end_token_is_the_tokenizers_where_the_model_names_none(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load(folder)
    assert tokenizer.eos_token_ids == (0,)
    assert tokenizer.vocab_size == len(WRAPPER)


def test_the_vocabulary_is_the_models_even_where_it_is_padded(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    nested = {"model_type": "llama", "text_config": {"vocab_size": 512, "eos_token_id": [3]}}
    (folder / "config.json").write_text(json.dumps(nested))
    tokenizer = load(folder)
    assert tokenizer.vocab_size == 512
    assert tokenizer.eos_token_ids == (3, 0)
    assert tokenizer.decode([511]) == ""


@pytest.mark.parametrize("wrapper", [byte_level_tokenizer(), ByT5Tokenizer()], ids=["fast", "slow"])
@pytest.mark.parametrize("gap", [0, 5000, 2_000_000])
def test_a_row_without_a_token_is_no_text(wrapper: Any, gap: int) -> None:
    end = len(wrapper) + gap
    tokenizer = Tokenizer(wrapper, vocab_size=end + 1)
    (letter,) = tokenizer.encode_plain("a")[:1]
    assert tokenizer.decode([letter, end, letter]) == "aa"
    assert tokenizer.names([letter, end])[1:] == [""]
    assert (tokenizer.pieces.name(end), tokenizer.pieces.bytes(end)) == ("", [])
    detokenizer = tokenizer.detokenizer()
    text = "".join(map(detokenizer.push, [end, letter, end, letter, end])) + detokenizer.flush()
    assert text == "aa"


def test_a_token_may_be_beyond_the_rows_of_the_model() -> None:
    wrapper = byte_level_tokenizer()
    wrapper.add_tokens(["[PAD]"])
    tokenizer = Tokenizer(wrapper, vocab_size=len(wrapper) - 1)
    assert (tokenizer.num_ids, tokenizer.vocab_size) == (len(wrapper), len(wrapper) - 1)
    assert tokenizer.encode("[PAD]") == [tokenizer.vocab_size]


def test_the_error_names_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"there is no folder .*/nowhere$"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
@pytest.mark.parametrize("content", ["{broken", "[]"])
def test_a_damaged_file_is_reported_in_one_line(tmp_path: Path, file: str, content: str) -> None:
    folder = save_model(tmp_path)
    (folder / file).write_text(content)
    with pytest.raises(TokenizerError, match=r"^cannot [^\n]+$"):
        load(folder)


def test_a_folder_without_a_tokenizer_is_reported_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"^cannot load the tokenizer of [^\n]+$"):
        load(tmp_path)
