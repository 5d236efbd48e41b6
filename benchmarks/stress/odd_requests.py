"""Valid requests with odd tokens, reproducible by seed.

The tokens are added ones beyond the model's embedding, rows of the embedding without a token,
special tokens in texts, and lone bytes. They are in all fields that name tokens: prompts, messages,
stop strings, bad words, lists of token ids, grammars, tools.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

_WORDS = ("hello ", "the fox ", " quick", "\n", " ", "é", "世界", "🦊", "e\u0301", "a" * 40)
_BYTES = (
    "\u0000",
    "\u0001",
    "\u007f",
    "\u0080",
    "\ufffd",
    "\uffff",
    "\U0010ffff",
    "<0x80>",
    "\u2028",
)
_MAX_TOKENS = 6


class OddRequest(NamedTuple):
    """The path and the body of a request."""

    path: str
    body: dict[str, Any]


@dataclass(frozen=True)
class OddTokens:
    """What requests are made of: special and added tokens, and how many ids there are.

    Token ids up to `num_ids` are those of the tokenizer or of the model, whichever has more.
    """

    model: str
    special: tuple[str, ...]
    beyond: tuple[str, ...]
    num_ids: int


def odd_requests(tokens: OddTokens, count: int, seed: int = 0) -> Iterator[OddRequest]:
    """`count` requests; about a fifth names a token that the model has no row for."""
    rng = random.Random(seed)
    for _ in range(count):
        yield _Maker(tokens, rng).request()


class _Maker:
    def __init__(self, tokens: OddTokens, rng: random.Random) -> None:
        self._tokens = tokens
        self._rng = rng

    def request(self) -> OddRequest:
        """A completion or a chat."""
        body = {"model": self._tokens.model, "max_tokens": self._rng.randint(1, _MAX_TOKENS)}
        body |= self._fields()
        if self._rng.random() < 0.4:
            return OddRequest("/v1/chat/completions", body | self._chat())
        return OddRequest("/v1/completions", body | self._completion())

    def _text(self) -> str:
        rng, tokens = self._rng, self._tokens
        kinds = rng.choices((_WORDS, _BYTES, tokens.special, tokens.beyond), (8, 3, 3, 0.4), k=4)
        parts = [rng.choice(kind) for kind in kinds if kind]
        if rng.random() < 0.2:  # a part of a token is none
            parts = [part[: rng.randint(1, len(part))] for part in parts]
        return "".join(parts) or "x"

    def _id(self) -> int:
        # Mostly ids that exist, often those near the end of the embedding.
        rng, num_ids = self._rng, self._tokens.num_ids
        if rng.random() < 0.9:
            return rng.randrange(num_ids - 12)
        return rng.randrange(num_ids - 12, num_ids + 2)

    def _ids(self) -> list[int]:
        return [self._id() for _ in range(self._rng.randint(1, 4))]

    def _completion(self) -> dict[str, Any]:
        rng = self._rng
        prompts: list[Any] = [
            self._text(),
            [self._text() for _ in range(2)],
            self._ids(),
            [self._ids()],
        ]
        more: dict[str, Any] = rng.choice(
            [
                {},
                {"echo": True},
                {"echo": True, "logprobs": 3},
                {"logprobs": 2},
                {"prompt_logprobs": 1},
            ]
        )
        return {"prompt": rng.choice(prompts)} | more

    def _chat(self) -> dict[str, Any]:
        rng = self._rng
        roles = rng.choice([("user",), ("system", "user"), ("user", "assistant", "user")])
        body: dict[str, Any] = {
            "messages": [{"role": role, "content": self._text()} for role in roles]
        }
        if rng.random() < 0.3:
            body |= {"logprobs": True, "top_logprobs": 3}
        if rng.random() < 0.1:
            function = {"name": "f", "description": self._text(), "parameters": {"type": "object"}}
            body |= {
                "tools": [{"type": "function", "function": function}],
                "tool_choice": "required",
            }
            body.pop("structured_outputs", None)
        return body

    def _fields(self) -> dict[str, Any]:
        """Some of the fields that both endpoints have."""
        rng = self._rng
        fields: dict[str, Any] = {
            "temperature": rng.choice([0, 1, 2]),
            "seed": rng.randrange(1000),
            "stop": [self._text(), rng.choice(self._tokens.special)],
            "bad_words": [self._text()],
            "allowed_token_ids": [*self._ids(), *range(20, 60)],
            "stop_token_ids": self._ids(),
            "logit_bias": {str(id_): rng.choice([-100, -1, 1, 100]) for id_ in self._ids()},
            "repetition_penalty": 1.3,
            "presence_penalty": 0.5,
            "min_tokens": 1,
            "ignore_eos": True,
            "include_stop_str_in_output": True,
            "skip_special_tokens": rng.random() < 0.5,
            "stream": True,
            "return_token_ids": True,
            "structured_outputs": {"choice": [self._text(), "yes"]},
        }
        weights = {"structured_outputs": 0.05, "allowed_token_ids": 0.08, "bad_words": 0.15}
        return {
            name: value for name, value in fields.items() if rng.random() < weights.get(name, 0.2)
        }
