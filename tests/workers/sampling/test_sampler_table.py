"""The sampler's table, against twins that change one row's logits token by token."""

from array import array
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wire.messages import Logprobs, SamplerSetup, Sampling, Step
from workers.sampling.sampler import Sampler
from workers.sampling.sampler_table import SamplerTable

VOCABULARY = 12
CPU = torch.device("cpu")


def ints(*values: int) -> bytes:
    """Packed int32."""
    return array("i", values).tobytes()


def setup(sampler_slot: int, prompt: list[int], output: list[int], **wants: Any) -> SamplerSetup:
    """A greedy sequence with these parameters."""
    min_tokens, stops = wants.pop("min_tokens", 0), wants.pop("stop_token_ids", ())
    sampling = Sampling(temperature=0.0, **wants)
    return SamplerSetup(sampler_slot, sampling, min_tokens, stops, ints(*prompt), ints(*output))


def edited(logits: Tensor, *setups: SamplerSetup) -> Tensor:
    """The rows' logits, each edited by its sequence's parameters."""
    table = SamplerTable(VOCABULARY, CPU)
    for one in setups:
        table.set_up(one)
    own = logits.clone()
    table.edit(own, np.array([one.sampler_slot for one in setups]))
    return own


def make_logits(rows: int) -> Tensor:
    """Random, positive and negative."""
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 3


TOKENS = st.lists(st.integers(0, VOCABULARY - 1), max_size=8)


@given(
    prompts=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4),
    presence=st.sampled_from([-2.0, 0.0, 0.5, 2.0]),
    frequency=st.sampled_from([-1.0, 0.0, 0.25]),
    repetition=st.sampled_from([0.5, 1.0, 1.3]),
)
def test_penalties_are_those_of_the_references(
    prompts: list[tuple[list[int], list[int]]],
    presence: float,
    frequency: float,
    repetition: float,
) -> None:
    logits = make_logits(len(prompts))
    wants = {
        "presence_penalty": presence,
        "frequency_penalty": frequency,
        "repetition_penalty": repetition,
    }
    setups = [setup(i, *both, **wants) for i, both in enumerate(prompts)]
    got = edited(logits, *setups)
    for row, (prompt, output) in enumerate(prompts):
        counts = Counter(output)
        for token in range(VOCABULARY):
            want = float(logits[row, token])
            if token in counts or token in prompt:
                want = want / repetition if want > 0 else want * repetition
            want -= frequency * counts[token] + presence * (token in counts)
            assert float(got[row, token]) == pytest.approx(want, abs=1e-5)


def test_biases_are_added_and_others_stay() -> None:
    logits = make_logits(2)
    biased = setup(0, [], [], bias_ids=ints(3, 5), biases=array("f", [2.0, -100.0]).tobytes())
    got = edited(logits, biased, setup(1, [], []))
    want = logits.clone()
    want[0, 3] += 2
    want[0, 5] -= 100
    assert torch.equal(got, want)


def test_only_allowed_tokens_are_left() -> None:
    got = edited(make_logits(1), setup(0, [], [], allowed_token_ids=ints(2, 7)))
    assert set(torch.isfinite(got[0]).nonzero()[:, 0].tolist()) == {2, 7}


@pytest.mark.parametrize(("num_out", "is_banned"), [(0, True), (1, True), (2, False)])
def test_stop_tokens_wait_for_min_tokens(num_out: int, is_banned: bool) -> None:
    waiting = setup(0, [], [1] * num_out, min_tokens=2, stop_token_ids=(4, 6))
    got = edited(make_logits(1), waiting)
    assert torch.isinf(got[0, [4, 6]]).tolist() == [is_banned] * 2


@pytest.mark.parametrize(
    ("history", "banned"),
    [([], {9}), ([1], {9, 2}), ([1, 2], {9, 3}), ([5, 1], {9, 2}), ([2, 1, 2], {9, 3})],
)
def test_a_bad_word_is_never_completed(history: list[int], banned: set[int]) -> None:
    words = (ints(9), ints(1, 2), ints(1, 2, 3))
    # Wherever the prompt ends and the output begins.
    for cut in range(len(history) + 1):
        got = edited(make_logits(1), setup(0, history[:cut], history[cut:], bad_words=words))
        assert set(torch.isinf(got[0]).nonzero()[:, 0].tolist()) == banned


def step(sampler_slots: list[int], *setups: SamplerSetup) -> Step:
    """Rows of these sampler slots, -1 for the most likely token."""
    nothing = b""
    return Step(
        *(1, 1, "decode", nothing, nothing, nothing, nothing, nothing, nothing),
        sampler_slots=ints(*sampler_slots),
        setups=setups,
    )


def test_the_table_counts_its_own_tokens() -> None:
    # A penalty of 100 for each time lets every token come once before any comes again.
    sampler, logits = Sampler(VOCABULARY, CPU), make_logits(1)
    wants = setup(0, [], [], frequency_penalty=100.0)
    tokens = []
    for number in range(2 * VOCABULARY):
        ids, _ = sampler.sample(logits, step([0], *([wants] if not number else [])))
        tokens += array("i", ids).tolist()
    order = logits[0].argsort(descending=True).tolist()
    assert tokens == order * 2


def test_a_sampler_slot_forgets_its_previous_sequence() -> None:
    sampler, logits = Sampler(VOCABULARY, CPU), make_logits(1)
    most_likely = int(logits.argmax())
    demanding = setup(
        0,
        [most_likely],
        [most_likely],
        repetition_penalty=2.0,
        presence_penalty=100.0,
        allowed_token_ids=ints(0),
        bad_words=(ints(most_likely),),
    )
    first, _ = sampler.sample(logits, step([0], demanding))
    second, _ = sampler.sample(logits, step([0], setup(0, [], [])))
    assert array("i", first).tolist() == [0]
    assert array("i", second).tolist() == [most_likely]


def test_hundreds_of_slots_and_counts_grow_without_mixing() -> None:
    sampler, count = Sampler(VOCABULARY, CPU), 300
    logits = make_logits(1).expand(count, -1).clone()
    most_likely = int(logits[0].argmax())
    setups = [
        setup(i, [], [most_likely], presence_penalty=100.0 if i % 3 == 0 else 0.0)
        for i in range(count)
    ]
    ids, _ = sampler.sample(logits, step(list(range(count)), *setups))
    again, _ = sampler.sample(logits, step(list(range(count))))
    for i, token in enumerate(array("i", ids).tolist()):
        assert (token == most_likely) == (i % 3 != 0)
    assert array("i", again)[1] == most_likely
    assert array("i", again)[0] not in (most_likely, array("i", ids)[0])


def unpacked(logprobs: Logprobs) -> list[tuple[int, float, int, list[int], list[float]]]:
    """(index, of the chosen, its rank, top ids, their log-probabilities) of each position."""
    top_ids, tops = array("i", logprobs.top_ids).tolist(), array("f", logprobs.tops).tolist()
    positions, at = [], 0
    columns = (
        array("i", logprobs.indices),
        array("f", logprobs.chosen),
        array("i", logprobs.ranks),
        array("i", logprobs.num_tops),
    )
    for index, chosen, rank, num_tops in zip(*columns, strict=True):
        end = at + num_tops
        positions.append((index, chosen, rank, top_ids[at:end], tops[at:end]))
        at = end
    return positions


def test_logprobs_are_the_model_s_own_whatever_the_sampling() -> None:
    sampler, logits = Sampler(VOCABULARY, CPU), make_logits(3)
    wanting = setup(0, [], [], num_logprobs=2, allowed_token_ids=ints(int(logits[0].argmin())))
    none = setup(1, [], [], presence_penalty=1.0)
    chosen_only = setup(2, [], [], num_logprobs=0)
    ids, logprobs = sampler.sample(logits, step([0, 1, 2], wanting, none, chosen_only))
    assert logprobs is not None
    first, last = unpacked(logprobs)
    truth = logits.log_softmax(dim=-1)
    token_ids = array("i", ids).tolist()
    order = logits[0].argsort(descending=True).tolist()
    assert first[0] == 0
    assert first[1] == pytest.approx(float(truth[0, token_ids[0]]), abs=1e-5)
    assert (first[2], first[3]) == (VOCABULARY, order[:2])
    assert first[4] == pytest.approx(truth[0, order[:2]].tolist(), abs=1e-5)
    assert (last[0], last[2], last[3]) == (2, 1, [])


def test_allowed_tokens_have_priority_where_bans_would_leave_none() -> None:
    logits = make_logits(3)
    stuck = {"allowed_token_ids": ints(5), "bad_words": (ints(5, 5), ints(5))}
    early = {"allowed_token_ids": ints(2, 7), "min_tokens": 3, "stop_token_ids": (2, 7)}
    free = {"allowed_token_ids": ints(2, 5), "bad_words": (ints(5, 5),)}
    got = edited(
        logits, setup(0, [1], [5], **stuck), setup(1, [1], [], **early), setup(2, [1], [5], **free)
    )
    for row, left in enumerate(([5], [2, 7], [2])):
        assert torch.nonzero(got[row] > -torch.inf)[:, 0].tolist() == left
        assert torch.equal(got[row, left], logits[row, left])
