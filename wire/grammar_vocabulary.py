"""The bytes of each token, as grammars need them: the same for checking and for sampling.

An added token that is not special, such as Qwen's `<tool_call>`, is text: a grammar that contains
its text allows the token. By itself, llguidance takes all of them in angle brackets as special. A
special token is never text: a grammar allows it only by its name or id in Lark, and a text that
contains its name is spelled with other tokens.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from llguidance import LLTokenizer
from tokenizers import Tokenizer


class _Tokens:
    """The tokens in the form that llguidance accepts from Python."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(
        self, core: Tokenizer, library: LLTokenizer, tokens: list[bytes], special_ids: Sequence[int]
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = library.eos_token
        self._core, self._library = core, library

    def __call__(self, text: str) -> list[int]:
        """Return the tokens of a text that a grammar forces.

        If the text ends within that of an added token, llguidance still allows this token, provided
        that its beginning has at most four tokens (as `<tool_call` has).
        """
        token_ids = self._core.encode(text, add_special_tokens=False).ids
        if b"".join(map(self.tokens.__getitem__, token_ids)) == text.encode():
            return list(token_ids)
        return self._library.greedy_tokenize(text)  # the tokenizer normalises the text


def grammar_tokenizer(
    serialised: str, num_ids: int | None = None, eos_token_id: int | None = None
) -> LLTokenizer:
    """Make llguidance's tokenizer from the tokenizers library's JSON; this takes seconds.

    Without `num_ids`, the vocabulary has as many ids as the tokenizer. Raises `ValueError` if the
    tokens are not bytes; llguidance may also panic, which is not an `Exception`.
    """
    library = LLTokenizer(serialised, n_vocab=num_ids, eos_token=eos_token_id, slices=[])
    core = Tokenizer.from_str(json.dumps(_without_prefix(json.loads(serialised))))
    core.no_padding()
    core.no_truncation()
    core.encode_special_tokens = True
    added = core.get_added_tokens_decoder()
    tokens, special_ids = [], []
    for token_id in range(library.vocab_size):
        token = added.get(token_id)
        # Ids without a token, and the byte FF, are special too: no text contains them.
        is_special = token.special if token else library.is_special_token(token_id)
        if is_special:
            special_ids.append(token_id)
        utf8 = token.content.encode() if token else library.decode_bytes([token_id])
        tokens.append(utf8 or f"<[{token_id}]>".encode())
    return LLTokenizer(_Tokens(core, library, tokens, special_ids))  # type: ignore[arg-type]


def named_token_ids(serialised: str) -> dict[str, int]:
    """Return the added tokens that are not special, by their text."""
    added = json.loads(serialised).get("added_tokens") or ()
    return {token["content"]: token["id"] for token in added if not token["special"]}


def _without_prefix(spec: Any) -> Any:
    """Remove the steps that put a space before a text, which may be the middle of an answer."""
    if isinstance(spec, list):
        return [_without_prefix(part) for part in _kept(spec)]
    if not isinstance(spec, dict):
        return spec
    changed = {"prepend_scheme": "never", "add_prefix_space": False}
    return {
        key: None
        if _is_prepend(part)
        else changed[key]
        if key in changed
        else part
        if key == "model"
        else _without_prefix(part)
        for key, part in spec.items()
    }


def _kept(steps: Iterable[Any]) -> list[Any]:
    return [step for step in steps if not _is_prepend(step)]


def _is_prepend(step: Any) -> bool:
    return isinstance(step, dict) and step.get("type") == "Prepend"
