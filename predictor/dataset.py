"""Training data: JSONL with prompt, answer length in tokens, and the tokenizer of these tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from predictor.classes import Ints

# With fewer, percentiles are meaningless, and the test part has fewer than 10 requests.
MIN_REQUESTS = 50
TRAINING_SHARE, VALIDATION_SHARE = 0.6, 0.2


class DataError(ValueError):
    """The data cannot be used for training; the message is one line for the user."""


class DataLine(msgspec.Struct, frozen=True):
    """One finished request; other keys of a line are ignored."""

    prompt: str
    output_len: int
    tokenizer: str | None = None


@dataclass(frozen=True, slots=True)
class Requests:
    """Finished requests; `tokenizer` is the fingerprint of the tokenizer of `output_lens`."""

    prompts: tuple[str, ...]
    output_lens: Ints  # [requests]
    tokenizer: str | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, indices: Sequence[int] | Ints) -> "Requests":
        """The requests at these indices."""
        chosen = tuple(self.prompts[i] for i in indices)
        return Requests(chosen, self.output_lens[np.asarray(indices)], self.tokenizer)


@dataclass(frozen=True, slots=True)
class Parts:
    """The three parts of the requests."""

    training: Requests
    validation: Requests
    test: Requests


def read_requests(path: Path, min_requests: int = MIN_REQUESTS) -> Requests:
    """All requests of the file. Raises `DataError`, which names the invalid line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    read: list[DataLine] = []
    tokenizer: str | None = None
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        place = f"{path}, line {number}"
        read.append(_parse(text, place))
        own = read[-1].tokenizer
        if own and tokenizer and own != tokenizer:
            raise DataError(f"{place}: lengths in tokens of {own}, in earlier lines of {tokenizer}")
        tokenizer = tokenizer or own or None
    if not read:
        raise DataError(f"{path} holds no requests")
    if len(read) < min_requests:
        raise DataError(f"{path} holds {len(read)} requests; at least {min_requests} are needed")
    lens = np.array([line.output_len for line in read], dtype=np.int64)
    return Requests(tuple(line.prompt for line in read), lens, tokenizer)


def split(requests: Requests, seed: int) -> Parts:
    """Shuffle by `seed` and split: 60 % for training, 20 % for validation, 20 % for the test."""
    order = np.random.default_rng(seed).permutation(len(requests))
    cuts = np.cumsum([TRAINING_SHARE, VALIDATION_SHARE]) * len(requests)
    training, validation, test = np.split(order, np.round(cuts).astype(int))
    return Parts(requests.take(training), requests.take(validation), requests.take(test))


def _parse(text: bytes, place: str) -> DataLine:
    try:
        line = msgspec.json.decode(text, type=DataLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: {error}") from error
    # This is far above the context length of any model, and fits numpy's integers.
    if not 0 < line.output_len < 2**31:
        raise DataError(f"{place}: output_len must be a positive whole number of tokens")
    return line
