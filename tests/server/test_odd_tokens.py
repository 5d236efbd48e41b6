"""Requests with odd tokens: each is answered with 200 or 400, and the engine only gets known ids.

`make odd-tokens` sends thousands of them to a daemon with a real model.
"""

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken

from benchmarks.stress.odd_requests import OddTokens, odd_requests
from benchmarks.stress.odd_tokens import ask
from engine.token_ids import find_unknown
from server.text.tokenizer import Tokenizer
from tests.server.templates import CHATML
from tests.server.world import BEGIN, END, MODEL, byte_level_tokenizer, generated, serving
from wire.messages import EngineReady, Finished, Logprobs, Scored, Submit, ToServer

BEYOND = ("[PAD]", "<image_soft_token>", "<|beyond|>")
PADDING = 13
NUM_REQUESTS = 250


def logprobs_of(positions: Sequence[int], num_tops: int, num_rows: int) -> Logprobs:
    """Log-probabilities with the last rows, some of which may be padding, as the likeliest."""
    count = len(positions)
    tops = np.tile(np.arange(num_rows - num_tops, num_rows), count)
    return Logprobs(
        np.array(positions, np.int32).tobytes(),
        np.full(count, -1.0, np.float32).tobytes(),
        np.ones(count, np.int32).tobytes(),
        np.full(count, num_tops, np.int32).tobytes(),
        tops.astype(np.int32).tobytes(),
        np.full(len(tops), -1.0, np.float32).tobytes(),
    )


class RandomModel:
    """An engine that generates any rows of a model, and notes ids that the model does not have."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.unknown: list[int] = []

    def __call__(self, submit: Submit) -> list[ToServer]:
        unknown = find_unknown(submit, self.num_rows)
        self.unknown += [] if unknown is None else [unknown]
        sampling, rng = submit.sampling, random.Random(submit.sequence_id)
        answer: list[ToServer] = []
        if sampling.num_prompt_logprobs >= 0:
            positions = range(1, len(submit.prompt_token_ids) // 4)
            scores = logprobs_of(positions, sampling.num_prompt_logprobs, self.num_rows)
            answer.append(Scored(submit.sequence_id, scores))
        for _ in range(submit.max_tokens):
            token_id = rng.choice(
                [rng.randrange(2), rng.randrange(self.num_rows), self.num_rows - 1]
            )
            step = generated(submit.sequence_id, token_id)
            if sampling.num_logprobs >= 0:
                logprobs = logprobs_of([0], sampling.num_logprobs, self.num_rows)
                step = type(step)(step.sequence_ids, step.token_ids, logprobs)
            answer.append(step)
            if token_id in submit.stop_token_ids:
                return [*answer, Finished(submit.sequence_id, "stop")]
        return [*answer, Finished(submit.sequence_id, "length")]


@pytest.mark.parametrize("is_padded", [False, True])
def test_odd_tokens_are_answered_or_refused(is_padded: bool, tmp_path: Path) -> None:
    wrapper = byte_level_tokenizer()
    wrapper.chat_template = CHATML
    num_rows = len(wrapper) + is_padded * PADDING
    if not is_padded:
        wrapper.add_tokens([AddedToken(token, special=token != BEYOND[0]) for token in BEYOND])
    tokenizer, model = Tokenizer(wrapper, vocab_size=num_rows), RandomModel(num_rows)
    num_ids = max(num_rows, len(wrapper))
    tokens = OddTokens(MODEL, (END, BEGIN), () if is_padded else BEYOND, num_ids)
    with serving(tmp_path, model, tokenizer=tokenizer) as daemon:
        daemon.engine.ready = EngineReady(2, 64, 16, 1024, vocab_size=num_rows)
        daemon.engine.introduce()
        daemon.wait_until(
            lambda: daemon.client.ready is not None and daemon.client.ready.vocab_size > 0
        )
        answers = Counter(
            ask(daemon.url, request) for request in odd_requests(tokens, NUM_REQUESTS)
        )
    assert answers.keys() == {"200", "400"}
    assert answers["200"] > NUM_REQUESTS // 3
    assert not model.unknown
