"""A tokenizer's files: each format alone is loaded, or the error names what is missing."""

import base64
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from configs.schema.model import ModelConfig
from server.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from server.text.tokenizer_files import explanation, is_installed
from tests.server.text.tokenizer_kinds import save_sentencepiece, sentencepiece_model

TEXT = "The capital is Paris. x"
MODEL = sentencepiece_model("bpe", byte_fallback=True)
VOCABULARY = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))} | {"he": 256}
MERGES = "#version: 0.2\nh e\n"
PIECES = [bytes([byte]) for byte in range(256)] + [b"he", b"llo"]
TIKTOKEN = b"".join(base64.b64encode(piece) + b" %d\n" % i for i, piece in enumerate(PIECES))
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
NOTHING_READ = "Couldn't instantiate the backend tokenizer from one of: (1) ..."


def tekken() -> str:
    """As Mistral's files: bytes, and ten control tokens before them."""
    vocabulary = [
        {"rank": i, "token_bytes": base64.b64encode(piece).decode(), "token_str": None}
        for i, piece in enumerate(PIECES)
    ]
    names = ["<unk>", "<s>", "</s>", *(f"[C{i}]" for i in range(7))]
    special = [{"rank": i, "token_str": s, "is_control": True} for i, s in enumerate(names)]
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+",
        "num_vocab_tokens": len(PIECES),
        "default_vocab_size": len(PIECES) + len(names),
        "default_num_special_tokens": len(names),
        "version": "v3",
    }
    return json.dumps({"config": config, "vocab": vocabulary, "special_tokens": special})


def save(folder: Path, model_type: str, **files: str | bytes) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 600}))
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (folder / name.replace("__", ".")).write_bytes(content)
    return folder


def load(folder: Path) -> Tokenizer:
    return load_tokenizer(ModelConfig(model=str(folder)))


@pytest.mark.parametrize(
    ("model_type", "files"),
    [
        ("mistral", {"tekken__json": tekken()}),
        ("gpt2", {"vocab__json": json.dumps(VOCABULARY), "merges__txt": MERGES}),
        ("qwen2", {"vocab__json": json.dumps(VOCABULARY), "merges__txt": MERGES}),
        ("bert", {"vocab__txt": "[UNK]\n[CLS]\n[SEP]\n[PAD]\n[MASK]\nthe\ncap\n##ital\nis\nx\n"}),
        ("llama", {"tokenizer__model": MODEL}),
        ("gemma", {"tokenizer__model": MODEL}),
        ("t5", {"spiece__model": sentencepiece_model("unigram", byte_fallback=False)}),
    ],
)
def test_each_format_alone_is_loaded_as_transformers_loads_it(
    tmp_path: Path, model_type: str, files: dict[str, Any]
) -> None:
    tokenizer = load(save(tmp_path, model_type, **files))
    expected = AutoTokenizer.from_pretrained(tmp_path)
    token_ids = expected(TEXT)["input_ids"]
    assert tokenizer.encode(TEXT) == token_ids
    assert tokenizer.decode(token_ids) == expected.decode(
        token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def test_a_sentencepiece_model_with_its_class_encodes_as_sentencepiece(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_sentencepiece(tmp_path, MODEL, tokenizer_class="LlamaTokenizer", bos_token="<s>")
    tokenizer = load(folder)
    own = SentencePieceProcessor(model_proto=MODEL)
    for text in (TEXT, "hello, the world", "é€ 1+1"):
        assert tokenizer.encode_plain(text) == own.encode(text)
        output = tokenizer.detokenizer(after=tokenizer.prompt_end(tokenizer.encode(text)))
        pushed = [output.push(token_id) for token_id in own.encode("Paris")]
        assert "".join([*pushed, output.flush()]) == " Paris"
    assert not caplog.records


def test_a_model_that_is_encoded_differently_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tdpipe"):
        load(save_sentencepiece(tmp_path, MODEL))
    assert "encodes texts differently from tokenizer.model itself" in caplog.text
    assert "tokenizer_config.json" in caplog.text


@pytest.mark.parametrize(
    ("model_type", "files", "message"),
    [
        ("llama", {}, "the folder has no tokenizer: none of tokenizer.json, tokenizer.model, "),
        ("gpt2", {"vocab__json": json.dumps(VOCABULARY)}, "merges.txt is missing"),
        ("gpt2", {"merges__txt": MERGES}, "vocab.json is missing"),
        ("llama", {"tokenizer__model": POINTER}, "tokenizer.model is a Git LFS pointer"),
        ("llama", {"tokenizer__json": POINTER}, "tokenizer.json is a Git LFS pointer"),
        ("llama", {"tokenizer__model": "garbage"}, "tokenizer.model is neither a sentencepiece"),
        (
            "llama",
            {"vocab__json": json.dumps(VOCABULARY), "merges__txt": MERGES},
            "transformers does not read vocab.json, merges.txt for this type of model",
        ),
    ],
)
def test_the_error_names_the_file(
    tmp_path: Path, model_type: str, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(TokenizerError) as raised:
        load(save(tmp_path, model_type, **files))
    assert str(raised.value).startswith(f"cannot load the tokenizer of {tmp_path}: {message}")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "missing", "message"),
    [
        (MODEL, {"sentencepiece"}, "tokenizer.model needs: pip install sentencepiece"),
        (MODEL, {"google.protobuf"}, "tokenizer.model needs: pip install protobuf"),
        (
            MODEL,
            {"sentencepiece", "google.protobuf"},
            "tokenizer.model needs: pip install sentencepiece protobuf",
        ),
        (TIKTOKEN, {"tiktoken"}, "tokenizer.model is tiktoken's and needs: pip install tiktoken"),
        (TIKTOKEN, set(), "what transformers says"),
    ],
)
def test_the_error_names_the_package(
    tmp_path: Path, content: bytes, missing: set[str], message: str
) -> None:
    folder = save(tmp_path, "llama", tokenizer__model=content)
    found = explanation(folder, "what transformers says", lambda name: name not in missing)
    assert found == message


def test_a_package_within_a_missing_one_is_missing() -> None:
    assert is_installed("google.protobuf")
    assert not is_installed("no_such_package.protobuf")


def test_an_error_in_a_complete_file_is_transformers_own(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama", tokenizer__json="{}", tokenizer__model="garbage")
    assert explanation(folder, "its reason") == "its reason"
    assert "tokenizer_class" in explanation(folder, NOTHING_READ)
