"""The filters, against transformers' own processors on the same logits.

The numbers from which tokens are drawn are replaced by ones that lie in the middle of each kept
token's share of [0, 1), and close to both of its ends. A token more or less, or another
probability, moves shares, so the tokens that these numbers select tell the whole distribution.
"""

import itertools
import math
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from wire.messages import SamplerSetup, Sampling, Step
from workers.sampling import sampler
from workers.sampling.grammars import Grammars
from workers.sampling.sampler import Sampler
from workers.sampling.vocabulary import no_vocabulary

# transformers sums up to 3,000 probabilities in fp32: a filter within this of a boundary may fall
# on either side of it.
NEAR = 2e-5
UNLIKELY = 1e-7  # tokens whose share is too small to aim at
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Wants:
    """The parameters of a request, and the tokens of its prompt."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    bad: tuple[int, ...] = ()
    allowed: tuple[int, ...] = ()
    stops: tuple[int, ...] = ()  # banned, because of min_tokens
    by_grammar: tuple[int, ...] = ()  # allowed by a grammar
    prompt: tuple[int, ...] = (0,)


def ints(values: Sequence[int]) -> bytes:
    """Packed int32."""
    return array("i", values).tobytes()


def sampling_of(wants: Wants, seed: int) -> Sampling:
    """What the server sends for these parameters."""
    return Sampling(
        temperature=wants.temperature,
        top_p=wants.top_p,
        top_k=wants.top_k,
        seed=seed,
        min_p=wants.min_p,
        repetition_penalty=wants.repetition_penalty,
        bias_ids=ints(list(wants.logit_bias)),
        biases=array("f", wants.logit_bias.values()).tobytes(),
        allowed_token_ids=ints(wants.allowed),
        bad_words=tuple(ints([word]) for word in wants.bad),
    )


class GrammarOf(Grammars):
    """Allows the same tokens in every row."""

    def __init__(self, vocab_size: int, allowed: Sequence[int]) -> None:
        super().__init__(vocab_size, no_vocabulary)
        self.is_banned = torch.ones(vocab_size, dtype=torch.bool)
        self.is_banned[list(allowed)] = False

    def banned(
        self, sampler_slots: np.ndarray, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """All rows."""
        assert device == CPU
        return torch.arange(len(sampler_slots)), self.is_banned.repeat(len(sampler_slots), 1)


def step_of(wants: Wants, rows: int, first_seed: int = 0) -> Step:
    """A step of `rows` sequences with these parameters, and seeds from `first_seed` on."""
    setups = tuple(
        SamplerSetup(
            row,
            sampling_of(wants, first_seed + row),
            1 if wants.stops else 0,
            wants.stops,
            ints(wants.prompt),
            b"",
        )
        for row in range(rows)
    )
    return Step(1, 1, "decode", *((b"",) * 6), sampler_slots=ints(range(rows)), setups=setups)


def pick(logits: Tensor, wants: Wants, draws: np.ndarray) -> list[int]:
    """The token that each of the `draws` selects from the row of logits."""
    grammars = GrammarOf(len(logits), wants.by_grammar) if wants.by_grammar else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "uniforms", lambda seeds, _: draws[seeds.astype(np.int64)])
        token_ids, _ = Sampler(len(logits), CPU, grammars).sample(
            logits.repeat(len(draws), 1), step_of(wants, len(draws))
        )
    return array("i", token_ids).tolist()


def transformers_scores(logits: Tensor, wants: Wants) -> Tensor:
    """The processed scores that `generate` draws from; -inf where it never draws. [vocabulary]"""
    config = GenerationConfig(
        do_sample=True,
        temperature=wants.temperature,
        top_k=wants.top_k,
        top_p=wants.top_p,
        min_p=wants.min_p or None,
        repetition_penalty=wants.repetition_penalty,
        sequence_bias=[[[token], bias] for token, bias in wants.logit_bias.items()] or None,
        bad_words_ids=[[word] for word in wants.bad] or None,
        min_new_tokens=1 if wants.stops else None,
        num_beams=1,
    )
    config._eos_token_tensor = torch.tensor(wants.stops) if wants.stops else None
    allowed = [set(ids) for ids in (wants.allowed, wants.by_grammar) if ids]
    inner = cast(Any, SimpleNamespace(config=SimpleNamespace(is_encoder_decoder=False)))
    inner._merge_criteria_processor_list = lambda default, _: default
    processors = GenerationMixin._get_logits_processor(
        inner,
        config,
        input_ids_seq_length=len(wants.prompt),
        prefix_allowed_tokens_fn=(
            (lambda *_: list(set.intersection(*allowed))) if allowed else None
        ),
        device="cpu",
    )
    return cast(Tensor, processors(torch.tensor([wants.prompt]), logits[None].clone()))[0]


def shares(logits: Tensor, wants: Wants) -> list[tuple[int, float]]:
    """The tokens that may be drawn, with their probabilities, in our order."""
    scores = transformers_scores(logits, wants)
    weights = scores.double().softmax(-1)
    kept = torch.nonzero(weights > 0)[:, 0].tolist()
    # `top_p` keeps some of the tokens that are equal to the last one, and in transformers it is
    # open which (its sort is not stable). Here it is those with the lowest ids.
    unfiltered = replace(wants, top_k=0, top_p=1.0, min_p=0.0)
    all_scores = transformers_scores(logits, unfiltered)
    order = sorted(range(len(logits)), key=lambda token: (-float(all_scores[token]), token))
    ours = order[: len(kept)]
    assert sorted(all_scores[ours].tolist()) == sorted(all_scores[kept].tolist())
    is_filtered = wants.top_p < 1 or 0 < wants.top_k < len(logits) or wants.min_p > 0
    ours = ours if is_filtered else sorted(ours)
    own = all_scores[ours].double().softmax(-1)
    return list(zip(ours, own.tolist(), strict=True))


def is_clear(logits: Tensor, wants: Wants) -> bool:
    """Rounding does not decide how many tokens pass."""
    counts = set()
    for by in (-NEAR, 0, NEAR):
        top_p = wants.top_p if wants.top_p == 1 else min(max(wants.top_p + by, 1e-9), 1 - 1e-9)
        near = replace(wants, top_p=top_p, min_p=min(wants.min_p * (1 + by), 1.0))
        counts.add(int((transformers_scores(logits, near) > -torch.inf).sum()))
    return len(counts) == 1


def draws_of(kept: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """Numbers in [0, 1), each with the token that it has to select."""
    begin = 0.0
    for token, share in kept:
        if share > UNLIKELY:
            yield token, begin + share / 2
        if share > 10 * NEAR:
            yield token, begin + NEAR
            yield token, begin + share - NEAR
        begin += share


def check(logits: Tensor, wants: Wants, at_most: int = 200) -> None:
    """Our draws are those from the distribution that transformers draws from."""
    aimed = list(draws_of(shares(logits, wants)))
    step = max(1, len(aimed) // at_most)
    aimed = aimed[::step] + aimed[-2:]
    got = pick(logits, wants, np.array([draw for _, draw in aimed]))
    assert got == [token for token, _ in aimed]


def spread(count: int, scale: float, seed: int, dtype: torch.dtype) -> Tensor:
    """Normally distributed logits; many are equal if they are rounded to bf16."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, generator=generator) * scale).to(dtype).float()


logits_of_requests = st.one_of(
    # Few distinct values: ties everywhere, also of all tokens.
    st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=40).map(torch.tensor),
    st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40).map(torch.tensor),
    st.builds(
        spread,
        st.sampled_from([2, 30, 513, 3000]),
        st.sampled_from([0.5, 2.0, 6.0]),
        st.integers(0, 1000),
        st.sampled_from([torch.float32, torch.bfloat16]),
    ),
)
wants_of_requests = st.builds(
    Wants,
    temperature=st.one_of(st.sampled_from([0.2, 1.0, 1.0, 3.0]), st.floats(0.05, 5)),
    top_k=st.one_of(
        st.just(0), st.integers(1, 40), st.sampled_from([255, 256, 300, 1000, 2**31 - 1])
    ),
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1 - 1e-6)),
    min_p=st.one_of(st.just(0.0), st.floats(0.001, 1)),
)


@given(logits=logits_of_requests, wants=wants_of_requests)
def test_the_tokens_that_may_be_drawn_are_those_of_transformers(
    logits: Tensor, wants: Wants
) -> None:
    assume(is_clear(logits, wants))
    check(logits, wants)


LARGE = {
    "spread": spread(3000, 2.0, 5, torch.float32),
    "rounded": spread(3000, 2.0, 5, torch.bfloat16),
    "equal after 200": torch.cat([spread(200, 1.0, 5, torch.float32) + 3, torch.zeros(2800)]),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("top_k", [199, 210, 255, 256, 257, 400])
def test_top_k_beyond_the_tokens_that_are_tried_first(kind: str, top_k: int) -> None:
    for top_p in (0.1, 0.33, 0.72, 0.9, 1.0):
        check(LARGE[kind], Wants(top_k=top_k, top_p=top_p))


@given(data=st.data(), logits=logits_of_requests, wants=wants_of_requests)
def test_filters_are_measured_on_what_the_other_parameters_leave(
    data: st.DataObject, logits: Tensor, wants: Wants
) -> None:
    token = st.integers(0, len(logits) - 1)
    tokens = st.lists(token, max_size=12, unique=True).map(tuple)
    biases = st.dictionaries(token, st.floats(-100, 100, width=32), max_size=5)
    wants = replace(
        wants,
        logit_bias=data.draw(biases),
        bad=data.draw(tokens),
        allowed=data.draw(tokens),
        stops=data.draw(tokens),
        by_grammar=data.draw(tokens),
        prompt=data.draw(st.lists(token, min_size=1, max_size=5).map(tuple)),
    )
    if not wants.logit_bias:  # transformers adds biases first, vLLM (and tdpipe) divides first
        wants = replace(wants, repetition_penalty=data.draw(st.floats(0.5, 2)))
    left = set(range(len(logits))) - {*wants.bad, *wants.stops}
    for only in (wants.allowed, wants.by_grammar):
        left &= set(only) or left
    assume(left)
    assume(is_clear(logits, wants))
    check(logits, wants)


def drawn(logits: Sequence[float], wants: Wants) -> set[int]:
    """The tokens that 1,000 evenly spaced numbers select."""
    return set(pick(torch.tensor(logits), wants, np.arange(1000) / 1000))


def test_top_p_is_measured_on_what_top_k_keeps() -> None:
    logits = torch.tensor([0.4, 0.2, 0.19, 0.11, 0.1]).log().tolist()
    assert drawn(logits, Wants(top_p=0.6)) == {0, 1}
    assert drawn(logits, Wants(top_p=0.61)) == {0, 1, 2}
    assert drawn(logits, Wants(top_p=0.65, top_k=2)) == {0}  # 0.4 / 0.6
    assert drawn(logits, Wants(top_p=0.67, top_k=2)) == {0, 1}


def test_all_tokens_that_are_equal_to_the_kth_one_pass_top_k() -> None:
    logits = [1.0, 3.0, 2.0, 2.0, 2.0, 0.0]
    assert drawn(logits, Wants(top_k=1)) == {1}
    assert drawn(logits, Wants(top_k=2)) == drawn(logits, Wants(top_k=4)) == {1, 2, 3, 4}
    assert drawn([0.0] * 900, Wants(top_k=1)) == set(range(900))


def test_of_equal_tokens_top_p_keeps_those_with_the_lowest_ids() -> None:
    assert drawn([0.0] * 10, Wants(top_p=0.35)) == {0, 1, 2, 3}
    assert drawn([0.0] * 900, Wants(top_p=0.01)) == set(range(9))


@pytest.mark.parametrize("size", [5, 3000])
def test_filters_that_keep_all_tokens_keep_all(size: int) -> None:
    logits = spread(size, 1.0, 1, torch.float32).tolist()
    for wants in (Wants(top_k=0), Wants(top_k=size), Wants(top_k=2**31 - 1), Wants(top_p=1.0)):
        assert drawn(logits, wants) == drawn(logits, Wants())


@pytest.mark.parametrize("size", [5, 3000])
def test_the_tightest_filters_keep_the_most_likely_token(size: int) -> None:
    logits = spread(size, 1.0, 1, torch.float32)
    best = {int(logits.argmax())}
    for wants in (
        Wants(top_p=1e-9),
        Wants(top_k=1),
        Wants(min_p=1.0),
        Wants(temperature=0.0),
        Wants(temperature=1e-30),
        Wants(temperature=0.0, top_k=3, top_p=0.5, min_p=0.1),
        Wants(temperature=1e-6, top_k=30, top_p=0.9, min_p=0.1),
        Wants(top_k=40, top_p=1e-9),
        Wants(top_k=40, top_p=0.9, min_p=1.0),
    ):
        assert drawn(logits.tolist(), wants) == best


@pytest.mark.parametrize("top_k", [0, 1, 2, 50])
def test_a_banned_token_passes_no_filter(top_k: int) -> None:
    logits = spread(3000, 1.0, 1, torch.float32).tolist()
    for top_p, min_p in itertools.product((1.0, 0.9), (0.0, 0.1)):
        wants = Wants(top_k=top_k, top_p=top_p, min_p=min_p, by_grammar=(7, 100))
        assert drawn(logits, wants) <= {7, 100}


TEMPERATURES = (0.5, 1.0, 2.0)
TOP_KS = (0, 1, 3, 12)
TOP_PS = (1.0, 0.95, 0.7, 0.2)
MIN_PS = (0.0, 0.05, 0.4)


@pytest.mark.parametrize(("size", "temperatures"), [(24, TEMPERATURES), (600, (1.5,))])
def test_many_draws_follow_the_filtered_distribution(
    size: int, temperatures: Sequence[float]
) -> None:
    """Chi-square over every combination; the seeds are fixed, so the test always ends the same."""
    (logits,) = spread(size, 2.0, 3, torch.float32)[None]
    chi_squares, degrees = [], []
    combinations = itertools.product(temperatures, TOP_KS, TOP_PS, MIN_PS)
    for number, combination in enumerate(combinations):
        wants = Wants(*combination)
        kept = dict(shares(logits, wants))
        counts = many_draws(logits, wants, first_seed=1_000_000 * number)
        assert counts.keys() <= kept.keys()
        chi_square, freedom = chi_square_of(counts, kept)
        chi_squares.append(chi_square)
        degrees.append(freedom)
    # All together; and the least likely of n is as likely as 0.01 / n by itself.
    assert p_value(sum(chi_squares), sum(degrees)) > 0.01
    each = [p_value(*one) for one in zip(chi_squares, degrees, strict=True)]
    assert min(each) > 0.01 / len(each)


def many_draws(logits: Tensor, wants: Wants, first_seed: int) -> Counter[int]:
    """How often each token is drawn: 200 sequences with 10 tokens each."""
    rows, steps = 200, 10
    sampler_, counts = Sampler(len(logits), CPU), Counter[int]()
    step = step_of(wants, rows, first_seed)
    for _ in range(steps):
        token_ids, _ = sampler_.sample(logits.expand(rows, -1), step)
        counts.update(array("i", token_ids).tolist())
        step = Step(1, 1, "decode", *((b"",) * 6), sampler_slots=step.sampler_slots)
    return counts


def chi_square_of(counts: Counter[int], kept: dict[int, float]) -> tuple[float, int]:
    """Chi-square and degrees of freedom; tokens that are expected fewer than 5 times are one."""
    total = counts.total()
    expected = {token: share * total for token, share in kept.items()}
    often = {token: number for token, number in expected.items() if number >= 5}
    cells = [(counts[token], number) for token, number in often.items()]
    rest = total - sum(often.values())
    if rest >= 5:
        cells.append((total - sum(count for count, _ in cells), rest))
    return math.fsum((count - number) ** 2 / number for count, number in cells), len(cells) - 1


def p_value(chi_square: float, degrees: int) -> float:
    """The probability of a chi-square that is at least so large."""
    if not degrees:
        return 1.0
    half = torch.tensor([degrees / 2, chi_square / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))
