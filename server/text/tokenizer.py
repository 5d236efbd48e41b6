"""The tokenizer: text to token ids and back, and the token settings in the model's files."""

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from configs.schema.model import ModelConfig
from server.text.bounded_threads import BoundedThreads
from server.text.detokenizer import Detokenizer, FastDetokenizer, WindowDetokenizer
from server.text.prompt_end import NO_PROMPT, PromptEnd, prompt_end
from server.text.token_pieces import TokenPieces
from server.text.token_texts import TokenTexts
from server.text.tokenizer_files import difference, explanation, lack_of_files
from wire.vocabulary_fingerprint import fingerprint

# 4,000 characters take about 4 ms; blocking the event loop for longer would delay other streams.
MAX_INLINE_CHARACTERS = 4_000
NUM_THREADS = 8
MAX_WAITING_TEXTS = 1024
GENERATION_CONFIG, TOKENIZER = "generation_config.json", "tokenizer"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")

logger = logging.getLogger("tdpipe")

Result = TypeVar("Result")


class TokenizerError(Exception):
    """The tokenizer is missing or damaged; the message is one line for the user."""


class Tokenizer:
    """The tokenizer of the model; several threads may encode at once.

    Token ids of the model are less than `vocab_size`, and those of the tokenizer less than
    `num_ids`. `end_token_ids` are the end-of-text tokens by the place that names them: the files of
    the model, and the tokenizer.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        vocab_size: int | None = None,
        end_token_ids: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._core = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._lock = threading.Lock()
        self._threads = BoundedThreads(NUM_THREADS, "long texts", MAX_WAITING_TEXTS, "tokenizer")
        vocabulary = tokenizer.get_vocab()
        self.num_ids = 1 + max(vocabulary.values(), default=-1)
        self.vocab_size = vocab_size or self.num_ids
        own_ids = as_ids(tokenizer.eos_token_id)
        self.end_token_ids: dict[str, Sequence[int]] = {**(end_token_ids or {}), TOKENIZER: own_ids}
        self._sticky_ids: frozenset[int] = frozenset()
        self._known_ids: frozenset[int] = frozenset()
        if self._core is None:
            self._known_ids = frozenset(vocabulary.values())
        else:
            self._core.no_truncation()
            self._core.no_padding()
            self._core.encode_special_tokens = tokenizer.split_special_tokens
            self._sticky_ids = _sticky_ids(vocabulary, self._omitted_ids)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All end-of-text tokens, without the end-of-turn token of the chat template."""
        return tuple(dict.fromkeys(chain.from_iterable(self.end_token_ids.values())))

    def info(self) -> dict[str, Any]:
        """The tokenizer's configuration with its class and chat template, without paths."""
        settings = {
            name: value
            for name, value in self._tokenizer.init_kwargs.items()
            if not name.endswith(("_file", "_path", "local", "_only")) and value is not None
        }
        info: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(settings, enc_hook=str))
        info["tokenizer_class"] = type(self._tokenizer).__name__
        if self._tokenizer.chat_template is not None:
            info["chat_template"] = self._tokenizer.chat_template
        return info

    @property
    def bos_token_id(self) -> int | None:
        """The token at the beginning of a text, if the tokenizer has one."""
        return self._tokenizer.bos_token_id  # type: ignore[no-any-return]

    @cached_property
    def fingerprint(self) -> str:
        """The hash of the vocabulary, see `wire.vocabulary_fingerprint`."""
        return fingerprint(self._tokenizer.get_vocab())

    @property
    def serialised(self) -> str | None:
        """The tokenizer as JSON of the tokenizers library; None for other kinds of tokenizers."""
        return str(self._core.to_str()) if self._core is not None else None

    def encode(self, text: str) -> list[int]:
        """The prompt's token ids with the special tokens that the model expects around it."""
        if self._core is not None:
            # The wrapper's own call sets truncation each time, which is not thread-safe. The batch
            # call releases the GIL, unlike `encode`.
            return list(self._core.encode_batch_fast([text])[0].ids)
        with self._lock:
            return list(self._tokenizer(text, verbose=False)["input_ids"])

    def encode_plain(self, text: str) -> list[int]:
        """The token ids of a text without special tokens around it."""
        if self._core is not None:
            return list(self._core.encode_batch_fast([text], add_special_tokens=False)[0].ids)
        with self._lock:
            return list(self._tokenizer(text, verbose=False, add_special_tokens=False)["input_ids"])

    async def encode_all(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, patient: bool = False
    ) -> list[list[int]]:
        """The token ids of each text, see `run`."""
        encode = self.encode if add_special_tokens else self.encode_plain
        num_characters = sum(map(len, texts))
        return await self.run(
            num_characters, lambda: [encode(text) for text in texts], patient=patient
        )

    async def run(
        self, num_characters: int, work: Callable[[], Result], *, patient: bool = False
    ) -> Result:
        """Run `work` on `num_characters` characters without blocking the event loop.

        Raises `ApiError` (429) if too many long texts already wait, unless `patient`.
        """
        if num_characters <= MAX_INLINE_CHARACTERS:
            return work()
        return await self._threads.run(work, patient=patient)

    def names(self, token_ids: Sequence[int]) -> list[str]:
        """The tokens as spelled in the vocabulary; empty for an unknown id."""
        convert = self._tokenizer.convert_ids_to_tokens
        return [(convert(id_) or "") if id_ < self.num_ids else "" for id_ in token_ids]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of the tokens; incomplete characters become U+FFFD."""
        if self._core is not None:
            # The batch call releases the GIL; decoding a million tokens would hold it for 1 s.
            batch = [list(token_ids)]
            return str(self._core.decode_batch(batch, skip_special_tokens=skip_special_tokens)[0])
        with self._lock:
            text = self._tokenizer.decode(
                # Tokenizers written in Python fail on an id without a token.
                [id_ for id_ in token_ids if id_ in self._known_ids],
                skip_special_tokens=skip_special_tokens,
                clean_up_tokenization_spaces=False,
            )
        return str(text)

    def prompt_end(self, prompt: Sequence[int], *, skip_special_tokens: bool = True) -> PromptEnd:
        """What a detokenizer must know of a prompt, with the same `skip_special_tokens`."""
        return prompt_end(
            prompt,
            partial(self.decode, skip_special_tokens=skip_special_tokens),
            self.pieces.bytes,
            omitted_ids=self._omitted_ids if skip_special_tokens else frozenset(),
            sticky_ids=self._sticky_ids,
        )

    def detokenizer(
        self, *, skip_special_tokens: bool = True, after: PromptEnd = NO_PROMPT
    ) -> Detokenizer:
        """A new detokenizer for the output of one sequence, which comes after a prompt."""
        if self._core is not None:
            return FastDetokenizer(
                self._core, self._sticky_ids, skip_special_tokens=skip_special_tokens, after=after
            )
        decode = partial(self.decode, skip_special_tokens=skip_special_tokens)
        return WindowDetokenizer(decode, after)

    def token_texts(
        self, *, skip_special_tokens: bool = True, after: PromptEnd = NO_PROMPT
    ) -> TokenTexts:
        """The texts and offsets of the tokens of one sequence, which comes after a prompt."""
        return TokenTexts(
            self.detokenizer(skip_special_tokens=skip_special_tokens, after=after),
            self.pieces,
            self._omitted_ids if skip_special_tokens else frozenset(),
            self._sticky_ids,
            begins_text=after == NO_PROMPT,
        )

    def offsets(self, text: str, token_ids: Sequence[int]) -> list[int] | None:
        """Where each token of an encoded prompt begins in its text, which may have been normalised.

        None if these are not the tokens of this text, or if the tokenizer cannot tell.
        """
        if self._core is None:
            return None
        encoding = self._core.encode(text)
        if list(encoding.ids) != list(token_ids):
            return None
        offsets, end = [], 0
        for (start, stop), is_special in zip(
            encoding.offsets, encoding.special_tokens_mask, strict=True
        ):
            # A token begins where the one before ends, because some tokenizers leave out spaces.
            offsets.append(end if is_special else min(start, end))
            end = end if is_special else max(stop, end)
        return offsets

    @cached_property
    def chat_templates(self) -> dict[str, str]:
        """The model's chat templates by name; usually "default", and maybe "tool_use"."""
        templates = self._tokenizer.chat_template or {}
        return {"default": templates} if isinstance(templates, str) else dict(templates)

    @cached_property
    def _omitted_ids(self) -> frozenset[int]:
        """The tokens that `decode` omits by default."""
        if self._core is None:
            return frozenset(self._tokenizer.all_special_ids)
        return frozenset(self.special_tokens.values())

    @cached_property
    def special_tokens(self) -> dict[str, int]:
        """The special tokens, which are omitted from decoded text, and their ids."""
        tokenizer = self._tokenizer
        named = zip(map(str, tokenizer.all_special_tokens), tokenizer.all_special_ids, strict=True)
        added = tokenizer.added_tokens_decoder.items()
        return dict(named) | {token.content: id_ for id_, token in added if token.special}

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """The tokens that were added to the vocabulary, and their ids; they are never split."""
        added = self._tokenizer.added_tokens_decoder.items()
        return {token.content: id_ for id_, token in added} | self.special_tokens

    def render_chat(self, messages: Sequence[dict[str, Any]], **arguments: Any) -> str:
        """transformers' `apply_chat_template`; raises whatever the template raises."""
        return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **arguments))

    @cached_property
    def pieces(self) -> TokenPieces:
        """Single tokens as text."""
        return TokenPieces(self._tokenizer, partial(self.decode, skip_special_tokens=False))


def keep_torch_out() -> None:
    """Prevent transformers from importing torch, which saves two seconds and 300 MB.

    Call it before transformers is imported, and only in this project's own processes.
    """
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def load_tokenizer(config: ModelConfig) -> Tokenizer:
    """The tokenizer of `config.tokenizer` or the model. Raises `TokenizerError` in one line."""
    name = config.tokenizer or config.model
    if not Path(name).exists() and Path(name).is_absolute():
        raise TokenizerError(f"cannot load the tokenizer: there is no folder {name}")
    if (
        not config.trust_remote_code
        and Path(name).is_dir()
        and (lacking := lack_of_files(Path(name)))
    ):
        raise TokenizerError(f"cannot load the tokenizer of {name}: {lacking}")
    # The import takes a second, so it comes after errors such as a port in use.
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=config.revision, trust_remote_code=config.trust_remote_code
        )
    # A damaged file may raise anything, from KeyError to a bare Exception from Rust.
    except Exception as error:
        reason = " ".join(str(error).split())
        if Path(name).is_dir():
            reason = explanation(Path(name), reason)
        raise TokenizerError(f"cannot load the tokenizer of {name}: {reason}") from error
    if doubt := difference(Path(name), partial(_encode_plain, tokenizer)):
        logger.warning("the tokenizer of %s: %s", name, doubt)
    model = read_json(config.model, "config.json", config.revision)
    text_model = model.get("text_config") or {}
    generation = read_generation_config(config)
    return Tokenizer(
        tokenizer,
        vocab_size=model.get("vocab_size") or text_model.get("vocab_size"),
        end_token_ids={
            GENERATION_CONFIG: as_ids(generation.get("eos_token_id")),
            "config.json": (
                *as_ids(model.get("eos_token_id")),
                *as_ids(text_model.get("eos_token_id")),
            ),
        },
    )


def read_generation_config(config: ModelConfig) -> dict[str, Any]:
    """The generation_config.json of the model, or of the folder that the settings name.

    Raises `TokenizerError` for a folder without the file, and for a file that cannot be read.
    """
    if config.generation_config in ("auto", "vllm"):
        return read_json(config.model, GENERATION_CONFIG, config.revision)
    if not (Path(config.generation_config) / GENERATION_CONFIG).is_file():
        raise TokenizerError(
            f"--generation-config is auto, vllm or a folder with a {GENERATION_CONFIG}, and "
            f"{config.generation_config} is none of them"
        )
    return read_json(config.generation_config, GENERATION_CONFIG, None)


def read_json(model: str, file: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of the model, from its folder or the hub; empty if it does not exist.

    Raises `TokenizerError` for a file that cannot be read.
    """
    from transformers.utils import cached_file

    if Path(model).is_absolute() and not Path(model).is_dir():  # or it would be taken for a hub id
        return {}
    path = cached_file(
        model,
        file,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return {}
    try:
        values = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise TokenizerError(f"cannot read {path}: {error}") from error
    return values if isinstance(values, dict) else {}


def _encode_plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def as_ids(value: object) -> tuple[int, ...]:
    """The token ids in a field of a JSON file: a number, a list of numbers, or null for none."""
    values = value if isinstance(value, list) else [value]
    return tuple(id_ for id_ in values if type(id_) is int and id_ >= 0)


def _sticky_ids(vocabulary: Mapping[str, int], omitted_ids: frozenset[int]) -> frozenset[int]:
    byte_ids = {id_ for token, id_ in vocabulary.items() if _BYTE_TOKEN.fullmatch(token)}
    return omitted_ids | byte_ids if byte_ids else frozenset()
