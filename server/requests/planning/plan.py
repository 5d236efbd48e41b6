"""The plan: the sequences that one request submits to the engine, and their messages."""

import random
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec.structs import replace

from server.lengths.length_predictor import ExpectedLength
from server.requests.resumption import Resumption
from wire.messages import Sampling, Submit


@dataclass(frozen=True)
class Plan:
    """The sequences of one request: `n` for each prompt, in the client's order.

    Choice `j` draws with `seed + j`; without a seed, each prompt gets a seed of its own. `sampling`
    applies to every sequence, except for its seed. `own_stop_ids` are the client's stop tokens, and
    `special_stops` the special tokens that occur in stop strings, with their ids. With
    `returns_tokens`, pieces have token ids and log-probabilities. With `only_scores`, the answer
    has no text, and the one token that the engine must generate is dropped. `expected_tokens` is
    the client's estimate of each answer's length. `offline` requests (batches, the `LLM` class) are
    not counted in a queue; they and flex requests have `low_priority`. `model` is the model name in
    the answer. With `continuous_usage`, each piece has the usage so far. `reasoning` says whether
    the model marks reasoning tokens, and whether the prompt has opened the reasoning. Prefixes are
    shared with requests of the same `cache_salt`. The events of a `resumable` stream have the
    tokens that they cover; with a `resumption`, they are those after the tokens in it.
    """

    prompts: Sequence[Sequence[int]]
    n: int
    max_tokens: Sequence[int]  # per prompt; all 0 if no token is asked for
    sampling: Sampling = field(default_factory=Sampling)
    min_tokens: int = 0
    seed: int | None = None
    stop_strings: Sequence[str] = ()
    special_stops: Mapping[str, int] = field(default_factory=dict)
    stop_token_ids: tuple[int, ...] = ()
    own_stop_ids: frozenset[int] = frozenset()
    include_stop: bool = False
    skip_special_tokens: bool = True
    returns_tokens: bool = False
    only_scores: bool = False
    expected_tokens: int | None = None
    offline: bool = False
    low_priority: bool = False
    endpoint: str = "completions"
    model: str = ""
    continuous_usage: bool = False
    reasoning: Literal["marked", "opened"] | None = None
    cache_salt: str = ""
    resumable: bool = False
    resumption: Resumption | None = None

    @property
    def num_sequences(self) -> int:
        """The number of sequences: prompts times n."""
        return len(self.prompts) * self.n

    @property
    def num_prompt_tokens(self) -> int:
        """The number of prompt tokens of all sequences together."""
        return self.n * sum(map(len, self.prompts))

    @property
    def needs_engine(self) -> bool:
        """Whether any token is to be generated."""
        return any(self.max_tokens)

    def messages(self, first_id: int, expected: Sequence[ExpectedLength]) -> list[Submit]:
        """Return the submissions; their ids start at `first_id`, `expected` is per prompt."""
        return [
            Submit(
                sequence_id=first_id + i * self.n + j,
                prompt_token_ids=packed,
                max_tokens=self.max_tokens[i],
                sampling=replace(self.sampling, seed=(seed + j) % 2**64),
                min_tokens=min(self.min_tokens, self.max_tokens[i]),
                stop_token_ids=self.stop_token_ids,
                predicted_len=expected[i].predicted_len,
                spread=expected[i].spread,
                offline=self.low_priority,
                cache_salt=self.cache_salt,
            )
            for i, (packed, seed) in enumerate(self._packed_prompts())
            for j in range(self.n)
        ]

    def _packed_prompts(self) -> list[tuple[bytes, int]]:
        return [
            (pack(prompt), random.getrandbits(63) if self.seed is None else self.seed)
            for prompt in self.prompts
        ]


def pack(token_ids: Sequence[int]) -> bytes:
    """Pack token ids as int32, the format of the messages."""
    return array("i", token_ids).tobytes()
