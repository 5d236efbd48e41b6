"""The sampler, against a twin that computes the kept set token by token."""

import math
from array import array
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wire.messages import SamplerSetup, Sampling, Step
from workers.sampling import sampler
from workers.sampling.sampler import Sampler, uniforms


@dataclass(slots=True, frozen=True)
class Draw:
    """How one row is sampled; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 1
    index: int = 0


GREEDY = Draw(temperature=0.0)


def make_step(rows: list[Draw], bans: tuple[tuple[int, bytes], ...] = ()) -> Step:
    """A plan in which all rows are new to the sampler; those that draw have a sampler slot each."""
    banned = dict(bans)
    special = [i for i, row in enumerate(rows) if row.temperature > 0 or i in banned]
    setups = tuple(
        SamplerSetup(
            i,
            Sampling(rows[i].temperature, rows[i].top_p, rows[i].top_k, rows[i].seed),
            1 << 30 if i in banned else 0,
            tuple(array("i", banned.get(i, b""))),
            b"",
            bytes(4 * rows[i].index),
        )
        for i in special
    )
    sampler_slots = [i if i in special else -1 for i in range(len(rows))]
    nothing = b""
    return Step(
        *(1, 1, "decode", nothing, nothing, nothing, nothing, nothing, nothing),
        sampler_slots=array("i", sampler_slots).tobytes() if special else b"",
        setups=setups,
    )


def pick(logits: Tensor, rows: list[Draw], bans: tuple[tuple[int, bytes], ...] = ()) -> list[int]:
    """The tokens of all rows."""
    before = logits.clone()
    sampler = Sampler(logits.shape[-1], logits.device)
    token_ids, logprobs = sampler.sample(logits, make_step(rows, bans))
    assert logprobs is None
    assert torch.equal(before, logits)
    return array("i", token_ids).tolist()


def make_logits(rows: int, vocabulary: int = 50, seed: int = 1) -> Tensor:
    """Random logits with a clear shape."""
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def probabilities(logits: Tensor, draw: Draw) -> dict[int, float]:
    """The kept tokens, most likely first, with their probabilities among those of `top_k`."""
    scores = [float(score) / draw.temperature for score in logits]
    order = sorted(range(len(scores)), key=lambda token: -scores[token])
    if draw.top_k:
        kth = scores[order[min(draw.top_k, len(order)) - 1]]
        order = [token for token in order if scores[token] >= kth]
    weights = {token: math.exp(scores[token] - max(scores)) for token in order}
    total = sum(weights.values())
    kept: dict[int, float] = {}
    before = 0.0
    for token in order:
        if kept and before >= draw.top_p:
            break
        kept[token] = weights[token] / total
        before += kept[token]
    return kept


def twin(logits: Tensor, draw: Draw) -> int:
    """Walk along the kept tokens until the uniform number is used up.

    The most likely one is first where filters apply, else they are in the order of their ids.
    """
    kept = probabilities(logits, draw)
    if draw.top_p == 1 and not 0 < draw.top_k < len(logits):
        kept = dict(sorted(kept.items()))
    left = float(uniforms(np.array([draw.seed], np.uint64), np.array([draw.index]))[0])
    left *= sum(kept.values())
    for token, probability in kept.items():
        left -= probability
        if left < 0:
            return token
    return token


def test_greedy_takes_the_largest_logit() -> None:
    logits = make_logits(5)
    assert pick(logits, [GREEDY] * 5) == logits.argmax(dim=-1).tolist()
    assert pick(logits.bfloat16(), [GREEDY] * 5) == logits.bfloat16().argmax(dim=-1).tolist()


def test_no_rows_give_no_tokens() -> None:
    assert pick(torch.empty(0, 50), []) == []


draws = st.builds(
    Draw,
    temperature=st.floats(0.05, 3),
    top_p=st.sampled_from([0.001, 0.3, 0.77, 0.95, 1.0]),
    top_k=st.sampled_from([0, 1, 2, 7, 50, 1000]),
    seed=st.integers(0, 2**64 - 1),
    index=st.integers(0, 100_000),
)


@given(rows=st.lists(st.one_of(draws, st.just(GREEDY)), min_size=1, max_size=6))
def test_a_draw_is_its_twin(rows: list[Draw]) -> None:
    logits = make_logits(len(rows))
    want = [
        twin(one, row) if row.temperature > 0 else int(one.argmax())
        for one, row in zip(logits, rows, strict=True)
    ]
    assert pick(logits, rows) == want


LARGE = make_logits(6, 3000).bfloat16()  # with many equal logits
FLAT = torch.zeros(1, 3000).bfloat16()  # with nothing but equal logits


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(
    ("top_p", "top_k"),
    [(1.0, 0), (0.2, 0), (0.9, 0), (0.999, 0), (1.0, 5), (1.0, 255), (1.0, 400), (0.7, 300)],
)
def test_draws_from_a_large_vocabulary_are_their_twins(
    temperature: float, top_p: float, top_k: int
) -> None:
    logits = torch.cat([LARGE, FLAT])
    rows = [Draw(temperature, top_p, top_k, seed, 3 * seed) for seed in range(len(logits))]
    want = [twin(one, row) for one, row in zip(logits.float(), rows, strict=True)]
    assert pick(logits, rows) == want


def test_a_row_that_keeps_many_tokens_draws_as_beside_one_that_keeps_few() -> None:
    few, many = Draw(top_p=0.1), Draw(temperature=3.0, top_p=0.99)
    both = pick(LARGE[:2], [few, many])
    assert both == pick(LARGE[:1], [few]) + pick(LARGE[1:2], [many])


@pytest.mark.parametrize(
    "draw",
    [Draw(top_k=3), Draw(top_p=0.6), Draw(top_k=4, top_p=0.8), Draw(top_k=1), Draw(top_p=0.0)],
)
def test_only_kept_tokens_are_drawn_and_each_of_them_is(draw: Draw) -> None:
    (logits,) = make_logits(1, vocabulary=12)
    rows = [Draw(draw.temperature, draw.top_p, draw.top_k, 5, i) for i in range(3000)]
    drawn = set(pick(logits.expand(3000, -1), rows))
    assert drawn == set(probabilities(logits, draw))


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    for top_p, kept in ((0.4, {0}), (0.6, {0, 1}), (0.79, {0, 1}), (0.85, {0, 1, 2})):
        rows = [Draw(top_p=top_p, index=i) for i in range(500)]
        assert set(pick(logits.expand(500, -1), rows)) == kept


def test_many_draws_follow_the_softmax() -> None:
    count = 5_000
    (logits,) = make_logits(1, vocabulary=8)
    for temperature in (0.5, 1.0, 2.0):
        rows = [Draw(temperature, seed=9, index=i) for i in range(count)]
        drawn = Counter(pick(logits.expand(count, -1), rows))
        expected = (logits / temperature).softmax(-1) * count
        chi_square = sum((drawn[t] - float(e)) ** 2 / float(e) for t, e in enumerate(expected))
        assert chi_square < 24.3  # 7 degrees of freedom, 1 in 1000


def test_seeds_differ_as_indices_do() -> None:
    (logits,) = make_logits(1, vocabulary=8)
    rows = [Draw(seed=i) for i in range(5_000)]
    drawn = Counter(pick(logits.expand(5_000, -1), rows))
    expected = logits.softmax(-1) * 5_000
    assert sum((drawn[t] - float(e)) ** 2 / float(e) for t, e in enumerate(expected)) < 24.3


def test_a_row_s_draw_does_not_depend_on_the_batch_or_its_place() -> None:
    logits = make_logits(20)
    rows = [Draw(0.8, 0.9, i % 5, seed=i, index=i) if i % 3 else GREEDY for i in range(20)]
    together = pick(logits, rows)
    by_itself = [pick(logits[i : i + 1], [rows[i]])[0] for i in range(20)]
    turned = pick(logits.flip(0), rows[::-1])[::-1]
    assert together == by_itself == turned


def test_the_same_seed_and_index_draw_the_same_token_again() -> None:
    logits = make_logits(1).expand(200, -1)
    rows = [Draw(seed=3, index=i) for i in range(200)]
    assert pick(logits, rows) == pick(logits, rows)
    assert pick(logits, rows) != pick(logits, [Draw(seed=4, index=i) for i in range(200)])


@pytest.mark.parametrize("temperature", [1e-2, 1e-4, 1e-6])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = make_logits(100)
    rows = [Draw(temperature, index=i) for i in range(100)]
    assert pick(logits, rows) == logits.argmax(dim=-1).tolist()


@pytest.mark.parametrize("draw", [GREEDY, Draw(), Draw(top_k=1), Draw(0.01)])
def test_a_banned_token_is_not_drawn(draw: Draw) -> None:
    logits = make_logits(50, vocabulary=6)
    best = logits.argmax(dim=-1).tolist()
    bans = tuple((i, array("i", [best[i], 5]).tobytes()) for i in range(0, 50, 2))
    rows = [Draw(draw.temperature, draw.top_p, draw.top_k, 1, i) for i in range(50)]
    free, banned = pick(logits, rows), pick(logits, rows, bans)
    for i in range(50):
        if i % 2:
            assert banned[i] == free[i]
        else:
            assert banned[i] not in (best[i], 5)


def test_a_ban_leaves_the_only_other_token() -> None:
    bans = ((0, array("i", [0, 2]).tobytes()),)
    for index in range(50):
        assert pick(torch.tensor([[9.0, -9.0, 9.0]]), [Draw(index=index)], bans) == [1]


def test_uniforms_are_in_range_and_the_same_every_time() -> None:
    seeds = np.array([0, 1, 2**63, 2**64 - 1] * 250, np.uint64)
    indices = np.arange(1000, dtype=np.int32)
    numbers = uniforms(seeds, indices)
    assert numbers.dtype == np.float64
    assert (numbers >= 0).all()
    assert (numbers < 1).all()
    assert np.array_equal(numbers, uniforms(seeds, indices))
    assert len(np.unique(numbers)) == 1000


def test_uniforms_keep_their_values_for_ever() -> None:
    """A journal or a client that repeats a seed relies on it."""
    numbers = uniforms(np.array([0, 42], np.uint64), np.array([0, 7]))
    assert numbers.tolist() == [0.6524484863740322, 0.08603176010658542]


@pytest.mark.parametrize("varying", ["index", "seed", "both"])
def test_uniforms_are_uniform(varying: str) -> None:
    count, bins = 50_000, 100
    run, still = np.arange(count), np.full(count, 17)
    seeds = (still if varying == "index" else run).astype(np.uint64)
    numbers = uniforms(seeds, still if varying == "seed" else run)
    found, _ = np.histogram(numbers, bins, (0, 1))
    chi_square = ((found - count / bins) ** 2 / (count / bins)).sum()
    assert chi_square < 148.2  # 99 degrees of freedom, 1 in 1000
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02


def test_a_dummy_run_takes_the_memory_of_the_most_expensive_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[int] = []
    draw = sampler.draw_filtered

    def counting(logits: Tensor, *rest: Any) -> Tensor:
        drawn.append(len(logits))
        return draw(logits, *rest)

    monkeypatch.setattr(sampler, "draw_filtered", counting)
    logits = make_logits(150)
    Sampler(logits.shape[-1], logits.device).dummy_run(logits)
    assert drawn == [64, 64, 22]


def test_named_tokens_come_in_place_of_the_likeliest() -> None:
    logits = make_logits(3)
    named = array("i", [40, 3, 17])
    samplings = [
        Sampling(0.0, num_logprobs=3, logprob_token_ids=named.tobytes()),
        Sampling(0.0, num_logprobs=2),
        Sampling(0.0, num_logprobs=1, logprob_token_ids=array("i", [49]).tobytes()),
    ]
    setups = tuple(SamplerSetup(i, each, 0, (), b"", b"") for i, each in enumerate(samplings))
    nothing = (b"",) * 6
    slots = array("i", range(3)).tobytes()
    step = Step(1, 1, "decode", *nothing, sampler_slots=slots, setups=setups)
    _, found = Sampler(50, logits.device).sample(logits, step)
    assert found is not None
    expected = logits.log_softmax(dim=-1)
    by_likelihood = sorted(named, key=lambda id_: -float(expected[0, id_]))
    likeliest = expected[1].topk(2).indices.tolist()
    assert array("i", found.num_tops).tolist() == [3, 2, 1]
    ids = array("i", found.top_ids).tolist()
    assert ids == [*by_likelihood, *likeliest, 49]
    rows = [0, 0, 0, 1, 1, 2]
    assert array("f", found.tops).tolist() == pytest.approx(
        [float(expected[row, id_]) for row, id_ in zip(rows, ids, strict=True)]
    )
