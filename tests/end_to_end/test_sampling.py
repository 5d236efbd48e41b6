"""The daemon agrees with what is computed from transformers' logits, to 1e-3 in fp32.

All requests of a test run at the same time, through two stages, in a KV cache small enough that
some are preempted, with prompts that go in chunks.
"""

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.schema.model import DEMO_MODEL
from demo.tasks import held_out
from tests.end_to_end.daemon import Daemon
from tests.end_to_end.reference import Reference

TOLERANCE = 1e-3
MAX_TOKENS = 40
PROMPTS = [task.prompt for task in held_out(6, seed=11)]
Edit = Callable[[Tensor, list[int], list[int]], Tensor]


@pytest.fixture
def daemon(tight: Daemon) -> Daemon:
    return tight


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(DEMO_MODEL, torch.float32)


def ask(daemon: Daemon, **body: Any) -> list[Any]:
    """Each prompt's choice, asked at the same time."""
    own = ("temperature", "max_tokens", "logprobs", "echo", "seed", "presence_penalty")
    fields = {"temperature": 0, "max_tokens": MAX_TOKENS} | body
    extra = {key: fields.pop(key) for key in list(fields) if key not in own}
    extra |= {"return_token_ids": True}

    async def gather() -> list[Any]:
        async with daemon.async_client() as client:
            return await asyncio.gather(
                *(
                    client.completions.create(
                        model="tdpipe-demo", prompt=prompt, extra_body=extra, **fields
                    )
                    for prompt in PROMPTS
                )
            )

    return [answer.choices[0].to_dict() for answer in asyncio.run(gather())]


@torch.inference_mode()
def logits_of(reference: Reference, token_ids: Sequence[int]) -> Tensor:
    """The logits after each token. [tokens, vocabulary]"""
    logits: Tensor = reference.model(torch.tensor([list(token_ids)])).logits[0].float()
    return logits


def greedy(reference: Reference, choice: Any, edit: Edit) -> Iterator[tuple[int, int, float]]:
    """At each position: the token of the daemon, the expected one, and how close the two are."""
    prompt, output = choice["prompt_token_ids"], choice["token_ids"]
    logits = logits_of(reference, prompt + output)
    for i, got in enumerate(output):
        edited = edit(logits[len(prompt) - 1 + i].clone(), prompt, output[:i])
        want = int(edited.argmax())
        yield got, want, float(edited[want] - edited[got])


def agree(reference: Reference, choices: list[Any], edit: Edit) -> None:
    """All tokens are the most likely by the edited logits, or as good as that."""
    for choice in choices:
        assert choice["token_ids"]
        for got, want, gap in greedy(reference, choice, edit):
            assert got == want or gap < TOLERANCE


def plain(logits: Tensor, _prompt: list[int], _output: list[int]) -> Tensor:
    return logits


def test_log_probabilities_are_the_models(daemon: Daemon, reference: Reference) -> None:
    for choice in ask(daemon, logprobs=5, echo=True):
        token_ids = choice["prompt_token_ids"] + choice["token_ids"]
        logprobs = choice["logprobs"]
        expected = logits_of(reference, token_ids).log_softmax(-1)
        assert logprobs["token_logprobs"][0] is None
        assert len(logprobs["token_logprobs"]) == len(token_ids) == len(logprobs["top_logprobs"])
        for i, token_id in enumerate(token_ids[1:]):
            own, tops = logprobs["token_logprobs"][i + 1], logprobs["top_logprobs"][i + 1]
            assert own == pytest.approx(float(expected[i, token_id]), abs=TOLERANCE)
            best = sorted(tops.values(), reverse=True)[:5]
            assert best == pytest.approx(expected[i].topk(5).values.tolist(), abs=TOLERANCE)
        assert "".join(logprobs["tokens"])[: len(choice["text"])] == choice["text"]


def test_a_prompt_without_output_is_scored(daemon: Daemon, reference: Reference) -> None:
    for choice in ask(daemon, logprobs=0, echo=True, max_tokens=0):
        token_ids = choice["prompt_token_ids"]
        logprobs = logits_of(reference, token_ids).log_softmax(-1)
        expected = [float(logprobs[i, id_]) for i, id_ in enumerate(token_ids[1:])]
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=TOLERANCE)
        assert choice["token_ids"] == []


def test_prompt_logprobs_have_ranks(daemon: Daemon, reference: Reference) -> None:
    for choice in ask(daemon, prompt_logprobs=2, max_tokens=1):
        token_ids = choice["prompt_token_ids"]
        logprobs = logits_of(reference, token_ids).log_softmax(-1)
        for i, token_id in enumerate(token_ids[1:]):
            own = choice["prompt_logprobs"][i + 1][str(token_id)]
            near = logprobs[i, token_id]
            assert own["logprob"] == pytest.approx(float(near), abs=TOLERANCE)
            least = int((logprobs[i] > near + TOLERANCE).sum()) + 1
            most = int((logprobs[i] > near - TOLERANCE).sum()) + 1
            assert least <= own["rank"] <= most


def test_penalties_are_taken_off_the_logits(daemon: Daemon, reference: Reference) -> None:
    def edit(logits: Tensor, prompt: list[int], output: list[int]) -> Tensor:
        counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=len(logits))
        seen = counts > 0
        seen[torch.tensor(prompt)] = True
        repeated = torch.where(logits > 0, logits / 1.3, logits * 1.3)
        logits = torch.where(seen, repeated, logits)
        return logits - 0.7 * counts - 0.4 * (counts > 0)

    choices = ask(
        daemon,
        presence_penalty=0.4,
        frequency_penalty=0.7,
        repetition_penalty=1.3,
        ignore_eos=True,
    )
    agree(reference, choices, edit)
    plainly = ask(daemon, ignore_eos=True)
    assert [c["token_ids"] for c in choices] != [c["token_ids"] for c in plainly]


def test_biases_are_added_and_bans_are_kept(daemon: Daemon, reference: Reference) -> None:
    plainly = ask(daemon, ignore_eos=True)
    common = plainly[0]["token_ids"][:2]
    bias = {str(common[0]): -100, str(common[1]): 2.5}

    def edit(logits: Tensor, _prompt: list[int], _output: list[int]) -> Tensor:
        logits[common[0]] -= 100
        logits[common[1]] += 2.5
        return logits

    biased = ask(daemon, logit_bias=bias, ignore_eos=True)
    agree(reference, biased, edit)
    assert not any(common[0] in choice["token_ids"] for choice in biased)


def test_only_allowed_tokens_come(daemon: Daemon, reference: Reference) -> None:
    allowed = sorted({id_ for choice in ask(daemon) for id_ in choice["token_ids"]})[::3]

    def edit(logits: Tensor, _prompt: list[int], _output: list[int]) -> Tensor:
        banned = torch.ones(len(logits), dtype=torch.bool)
        banned[allowed] = False
        return logits.masked_fill(banned, -math.inf)

    choices = ask(daemon, allowed_token_ids=allowed, ignore_eos=True)
    agree(reference, choices, edit)
    assert {id_ for choice in choices for id_ in choice["token_ids"]} <= set(allowed)


def test_bad_words_never_come(daemon: Daemon) -> None:
    words = [choice["text"].split()[0] for choice in ask(daemon) if choice["text"].split()]
    assert words
    for choice in ask(daemon, bad_words=words):
        assert not any(f" {word} " in f" {choice['text']} " for word in words)


def test_an_end_before_min_tokens_is_not_picked(daemon: Daemon, reference: Reference) -> None:
    end = reference.model.config.eos_token_id
    assert any(len(choice["token_ids"]) < MAX_TOKENS for choice in ask(daemon))

    def edit(logits: Tensor, _prompt: list[int], output: list[int]) -> Tensor:
        if len(output) < MAX_TOKENS:
            logits[end] = -math.inf
        return logits

    choices = ask(daemon, min_tokens=MAX_TOKENS)
    agree(reference, choices, edit)
    assert all(len(choice["token_ids"]) == MAX_TOKENS for choice in choices)


def test_draws_stay_within_min_p_and_top_k(daemon: Daemon, reference: Reference) -> None:
    choices = ask(daemon, temperature=1.5, seed=7, min_p=0.1, top_k=3)
    for choice in choices:
        prompt, output = choice["prompt_token_ids"], choice["token_ids"]
        logits = logits_of(reference, prompt + output)[len(prompt) - 1 : -1] / 1.5
        chances = logits.softmax(-1)
        for i, token_id in enumerate(output):
            own = float(chances[i, token_id])
            assert own >= 0.1 * float(chances[i].max()) - TOLERANCE
            assert own >= float(chances[i].topk(3).values[-1]) - TOLERANCE
    again = ask(daemon, temperature=1.5, seed=7, min_p=0.1, top_k=3)
    assert [c["token_ids"] for c in again] == [c["token_ids"] for c in choices]


def test_no_block_is_left_in_use(daemon: Daemon, reference: Reference) -> None:
    before = daemon.metric("tdpipe_preemptions_total")
    agree(reference, ask(daemon, ignore_eos=True), plain)
    assert daemon.metric("tdpipe_preemptions_total") > before
