"""Small tokenizers of every kind: byte level, byte fallback, sentencepiece, word pieces, Python."""

import io
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import sentencepiece
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Core
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast
from transformers.models.byt5.tokenization_byt5 import ByT5Tokenizer
from transformers.models.gpt_sw3.tokenization_gpt_sw3 import GPTSw3Tokenizer

from server.text.token_pieces import _byte_letters
from server.text.tokenizer import Tokenizer
from tests.server.world import byte_fallback_core, byte_level_tokenizer

CORPUS = [
    "The capital of France is Paris.",
    "The capital of Spain is Madrid, not Paris.",
    "hello world, hello there, the world",
    "numbers 1 2 3 4 5 6 7 8 9 0",
    "def f(x): return x + 1",
] * 8
BYTES = {f"<0x{byte:02X}>": byte for byte in range(256)}
PIECES = ["▁hello", "▁", "▁▁", "x", "y", "▁wor", "ld", "\ufffd", ".", "é"]


def sentencepiece_model(kind: Literal["unigram", "bpe"], *, byte_fallback: bool) -> bytes:
    """Train a `tokenizer.model`."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        model_type=kind,
        vocab_size=340 if byte_fallback else 90,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return model.getvalue()


def save_sentencepiece(folder: Path, model: bytes, **config: Any) -> Path:
    """Save a checkpoint of a Llama that has nothing but a `tokenizer.model`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 400}))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def _sentencepiece(kind: Literal["unigram", "bpe"], *, byte_fallback: bool, name: str) -> Any:
    model = sentencepiece_model(kind, byte_fallback=byte_fallback)
    with TemporaryDirectory() as folder:
        save_sentencepiece(Path(folder), model, tokenizer_class=name, bos_token="<s>")
        return AutoTokenizer.from_pretrained(folder)


def _slow_sentencepiece() -> Any:
    with TemporaryDirectory() as folder:
        file = Path(folder, "spiece.model")
        file.write_bytes(sentencepiece_model("bpe", byte_fallback=False))
        return GPTSw3Tokenizer(str(file), unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def _fast(core: Core, *special: str) -> Any:
    core.add_tokens([AddedToken("<tool_call>", special=False)])
    core.add_special_tokens([AddedToken(token, special=True) for token in special or ("</s>",)])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def _byte_level(*, prefix_space: bool) -> Any:
    core = byte_level_tokenizer().backend_tokenizer
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    return _fast(core, "<|hidden|>")


def _fallback(*steps: Any) -> Any:
    """Byte tokens, and words with marks for spaces."""
    vocabulary = BYTES | {piece: 256 + i for i, piece in enumerate(PIECES)}
    core = Core(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence(list(steps))
    return _fast(core)


def _metaspace(scheme: Literal["always", "first", "never"]) -> Any:
    core = Core(models.Unigram([("<unk>", 0.0), *((piece, -1.0) for piece in PIECES)], 0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _fast(core)


def _words(
    tokens: Iterable[str], decoder: Any, model: Callable[..., Any] = models.WordLevel
) -> Any:
    vocabulary = {token: i for i, token in enumerate(["[UNK]", *tokens])}
    core = Core(model(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if decoder is not None:
        core.decoder = decoder
    return _fast(core)


def _spelt(piece: bytes) -> str:
    letters = {byte: letter for letter, byte in _byte_letters().items()}
    return "".join(letters[byte] for byte in piece)


class _JoinedBytes(PreTrainedTokenizer):  # type: ignore[misc]
    """A byte-level tokenizer in Python, as those of Qwen 1 and Kimi that wrap tiktoken."""

    _pieces = (*(bytes([byte]) for byte in range(256)), b"he", b"llo", b" w", b" \xe2", b"\x82\xac")
    _names = tuple(map(_spelt, _pieces))
    _ids: ClassVar[dict[str, int]] = {name: i for i, name in enumerate(_names)}

    @property
    def vocab_size(self) -> int:
        return len(self._pieces)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._names[byte] for byte in text.encode()]

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return self._names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return b"".join(self._pieces[self._ids[token]] for token in tokens).decode(errors="replace")


_REPLACE = decoders.Replace("▁", " ")
_KINDS: dict[str, Callable[[], Any]] = {
    "byte level": lambda: _byte_level(prefix_space=False),
    "byte level with a prefix space": lambda: _byte_level(prefix_space=True),
    "byte fallback, as Llama 2": lambda: PreTrainedTokenizerFast(
        tokenizer_object=byte_fallback_core(), eos_token="</s>"
    ),
    "byte fallback, as Gemma": lambda: _fallback(
        _REPLACE, decoders.ByteFallback(), decoders.Fuse()
    ),
    "byte fallback without fuse": lambda: _fallback(decoders.ByteFallback(), _REPLACE),
    "byte fallback and metaspace": lambda: _fallback(
        decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")
    ),
    "metaspace always": lambda: _metaspace("always"),
    "metaspace first": lambda: _metaspace("first"),
    "metaspace never": lambda: _metaspace("never"),
    "word pieces": lambda: _words(
        ["par", "##is", "is", ".", "##n't", "'", "##\ufffd"], decoders.WordPiece(), models.WordPiece
    ),
    "word pieces, not cleaned": lambda: _words(
        ["par", "##is", "is", ".", "'"], decoders.WordPiece(cleanup=False), models.WordPiece
    ),
    "suffixes": lambda: _words(["par", "is</w>", "a</w>", ".</w>"], decoders.BPEDecoder("</w>")),
    "words": lambda: _words(["par", "is", "a", "\ufffd"], None),
    "sentencepiece BPE": lambda: _sentencepiece("bpe", byte_fallback=True, name="LlamaTokenizer"),
    "sentencepiece unigram": lambda: _sentencepiece(
        "unigram", byte_fallback=False, name="T5Tokenizer"
    ),
    "Python bytes": _JoinedBytes,
    "Python ByT5": ByT5Tokenizer,
    "Python sentencepiece": _slow_sentencepiece,
}
KINDS = tuple(_KINDS)


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    """A tokenizer of this kind."""
    return Tokenizer(_KINDS[kind]())


def num_ids(tokenizer: Tokenizer) -> int:
    """One more than the largest id."""
    return 1 + int(max(tokenizer._tokenizer.get_vocab().values()))
