"""Grammars in the sampler: rows with and without one, reused sampler slots, and failures."""

import itertools
import json
import logging
import re
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLParserLimits
from torch import Tensor

from tests.workers.vocabularies import core_of, vocabulary_of
from wire.messages import SamplerSetup, Sampling, Step
from workers.sampling import grammars as module
from workers.sampling import guide
from workers.sampling.grammars import Grammars, unpacked
from workers.sampling.guide import compile_grammar
from workers.sampling.sampler import Sampler
from workers.sampling.vocabulary import Vocabulary, no_vocabulary

CPU = torch.device("cpu")
VOCABULARY = 768 + 45  # the demo model's, and ids that are not tokens
END = 0
DIGITS = LLMatcher.grammar_from_regex("[0-9]{3,6}")
SCHEMA = LLMatcher.grammar_from_json_schema(
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["cat", "dog"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 30},
            "names": {
                "type": "array",
                "items": {"type": "string", "maxLength": 5},
                "maxItems": 2,
            },
        },
        "required": ["kind", "age", "names"],
        "additionalProperties": False,
    },
    overrides={"whitespace_flexible": False},
)


@pytest.fixture
def grammars() -> Iterator[Grammars]:
    made = Grammars(VOCABULARY, lambda: vocabulary_of("demo"))
    yield made
    made.close()


def setup(
    sampler_slot: int, grammar: str, output: Sequence[int] = (), **wants: Any
) -> SamplerSetup:
    """A sequence's settings; greedy unless set otherwise."""
    min_tokens, stops = wants.pop("min_tokens", 0), wants.pop("stop_token_ids", (END,))
    sampling = Sampling(**({"temperature": 0.0, "grammar": grammar} | wants))
    return SamplerSetup(
        sampler_slot, sampling, min_tokens, stops, b"", array("i", output).tobytes()
    )


def step(sampler_slots: list[int], *setups: SamplerSetup, step_id: int = 1) -> Step:
    """Rows of these sampler slots, -1 for the most likely token."""
    nothing = b""
    return Step(
        *(1, step_id, "decode", nothing, nothing, nothing, nothing, nothing, nothing),
        sampler_slots=array("i", sampler_slots).tobytes(),
        setups=setups,
    )


def logits_of(seed: int, rows: int = 1) -> Tensor:
    """Random, and lower than any real token's where there is no token."""
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def picked(sampler: Sampler, logits: Tensor, plan: Step) -> list[int]:
    """The tokens of a step."""
    return array("i", sampler.sample(logits, plan)[0]).tolist()


def text_of(token_ids: list[int]) -> str:
    """The text as a client reads it."""
    text: str = core_of("demo").decode(token_ids)
    return text


def run(sampler: Sampler, rows: list[SamplerSetup], max_tokens: int = 120) -> list[list[int]]:
    """All rows in each step, until every one has stopped; without the stop tokens."""
    outputs: list[list[int]] = [[] for _ in rows]
    going = list(range(len(rows)))
    for number in range(max_tokens):
        plan = step([rows[i].sampler_slot for i in going], *([] if number else rows))
        tokens = picked(sampler, logits_of(number, len(rows))[going], plan)
        for i, token in zip(going, tokens, strict=True):
            outputs[i].append(token)
        going = [i for i in going if outputs[i][-1] not in rows[i].stop_token_ids]
        if not going:
            break
    assert not going, "a row did not stop"
    return [output[:-1] for output in outputs]


def test_every_row_follows_its_own_grammar(grammars: Grammars) -> None:
    rows = [
        setup(i, (DIGITS, SCHEMA)[i % 2], temperature=1.0 if i % 3 else 0.0, seed=i)
        for i in range(24)
    ]
    for i, output in enumerate(run(Sampler(VOCABULARY, CPU, grammars), rows)):
        text = text_of(output)
        if i % 2:
            value = json.loads(text)
            assert value["kind"] in ("cat", "dog")
            assert 0 <= value["age"] <= 30
            assert all(len(name) <= 5 for name in value["names"])
        else:
            assert re.fullmatch("[0-9]{3,6}", text)


def test_rows_without_a_grammar_are_not_changed_by_rows_with_one(
    grammars: Grammars,
) -> None:
    own = [setup(0, "", temperature=1.0, seed=5), setup(2, "", presence_penalty=1.0)]
    guided = [setup(1, DIGITS), setup(3, SCHEMA, temperature=1.0)]
    together, by_itself = Sampler(VOCABULARY, CPU, grammars), Sampler(VOCABULARY, CPU)
    for number in range(12):
        logits = logits_of(number, 5)
        setups = () if number else (*own, *guided)
        mixed = picked(together, logits, step([0, 1, 2, 3, -1], *setups))
        want = picked(by_itself, logits[[0, 2, 4]], step([0, 2, -1], *(() if number else own)))
        assert [mixed[0], mixed[2], mixed[4]] == want


def test_logits_are_left_as_they_were(grammars: Grammars) -> None:
    logits = logits_of(1, 2)
    before = logits.clone()
    Sampler(VOCABULARY, CPU, grammars).sample(logits, step([0, -1], setup(0, DIGITS)))
    assert torch.equal(before, logits)


def test_a_guided_row_takes_the_likeliest_token_that_its_grammar_allows(
    grammars: Grammars,
) -> None:
    logits = logits_of(1)
    (token,) = picked(Sampler(VOCABULARY, CPU, grammars), logits, step([0], setup(0, DIGITS)))
    digits = [core_of("demo").token_to_id(digit) for digit in "0123456789"]
    assert token == max(digits, key=lambda id_: float(logits[0, id_]))


@pytest.mark.parametrize(
    "wants",
    [
        {"allowed_token_ids": array("i", [300, 301]).tobytes()},
        {"bad_words": tuple(array("i", [id_]).tobytes() for id_ in range(1, 768))},
    ],
    ids=["allowed ids", "bad words"],
)
def test_where_the_other_parameters_leave_nothing_the_grammar_has_priority(
    wants: dict[str, Any], grammars: Grammars
) -> None:
    sampler, plain = Sampler(VOCABULARY, CPU, grammars), Sampler(VOCABULARY, CPU, grammars)
    (got,) = run(sampler, [setup(0, DIGITS, temperature=1.0, seed=3, **wants)])
    assert re.fullmatch("[0-9]{3,6}", text_of(got))
    first = picked(plain, logits_of(0), step([0], setup(0, DIGITS, temperature=1.0, seed=3)))
    assert got[:1] == first  # drawn from the logits as the model gave them


def test_a_complete_output_is_filled_with_stop_tokens_up_to_its_minimum(
    grammars: Grammars,
) -> None:
    sampler = Sampler(VOCABULARY, CPU, grammars)
    plan = setup(0, LLMatcher.grammar_from_regex("7"), min_tokens=5)
    tokens = [
        picked(sampler, logits_of(i), step([0], *(() if i else (plan,))))[0] for i in range(5)
    ]
    assert tokens == [core_of("demo").token_to_id("7"), END, END, END, END]


def test_a_sampler_slot_forgets_its_previous_grammar(grammars: Grammars) -> None:
    sampler, logits = Sampler(VOCABULARY, CPU, grammars), logits_of(1)
    picked(sampler, logits, step([0], setup(0, DIGITS)))
    assert picked(sampler, logits, step([0], setup(0, ""))) == [int(logits.argmax())]


def test_a_plan_that_arrives_early_leaves_the_slot_to_its_sequence_until_it_runs(
    grammars: Grammars,
) -> None:
    sampler = Sampler(VOCABULARY, CPU, grammars)
    old, new = setup(0, DIGITS), setup(0, LLMatcher.grammar_from_regex("xyz"))
    first, second, third = step([0], old), step([0], step_id=2), step([0], new, step_id=3)
    for plan in (first, second, third):
        sampler.expect(plan)
    texts = [text_of(picked(sampler, logits_of(1), plan)) for plan in (first, second, third)]
    assert texts[0].isdigit()
    assert texts[1].isdigit()
    assert texts[2].startswith("x")


def test_after_a_restart_a_sequence_continues_where_it_was(grammars: Grammars) -> None:
    whole = run(Sampler(VOCABULARY, CPU, grammars), [setup(0, SCHEMA, temperature=1.0, seed=9)])[0]
    for done in range(len(whole)):
        restarted = Grammars(VOCABULARY, lambda: vocabulary_of("demo"))
        again = setup(0, SCHEMA, whole[:done], temperature=1.0, seed=9)
        plan = step([0], again)
        assert picked(Sampler(VOCABULARY, CPU, restarted), logits_of(done), plan) == [whole[done]]
        restarted.close()


def test_the_next_masks_are_made_before_they_are_asked_for(grammars: Grammars) -> None:
    sampler = Sampler(VOCABULARY, CPU, grammars)
    picked(sampler, logits_of(1, 2), step([0, 1], setup(0, DIGITS), setup(1, SCHEMA)))
    grammars.close()  # no thread is left that could make them now
    assert [len(allowed) for allowed in _allowed(grammars, [0, 1])] == [10, 1]


def test_the_first_mask_is_made_when_the_plan_comes(grammars: Grammars) -> None:
    plan = step([0], setup(0, DIGITS))
    grammars.expect(plan)
    grammars.close()
    grammars.set_up(plan.step_id, plan.setups[0])
    assert [len(allowed) for allowed in _allowed(grammars, [0])] == [10]


def _allowed(grammars: Grammars, sampler_slots: list[int]) -> list[list[int]]:
    """The tokens that each sampler slot may pick."""
    guided = grammars.banned(np.array(sampler_slots), CPU)
    assert guided is not None
    return [(~row).nonzero()[:, 0].tolist() for row in guided[1]]


def test_a_step_without_grammars_asks_for_no_mask(grammars: Grammars) -> None:
    assert grammars.banned(np.array([0, 3]), CPU) is None


def test_the_vocabulary_is_loaded_once_and_not_before_the_first_grammar() -> None:
    loads = []

    def load() -> Vocabulary:
        loads.append(1)
        return vocabulary_of("demo")

    counted = Grammars(VOCABULARY, load)
    sampler = Sampler(VOCABULARY, CPU, counted)
    picked(sampler, logits_of(1), step([0], setup(0, "", temperature=1.0)))
    assert not loads
    run(sampler, [setup(i, (DIGITS, SCHEMA)[i % 2]) for i in range(6)])
    counted.close()
    assert loads == [1]


@pytest.mark.parametrize(
    ("max_copies", "max_kept", "num_compiled"), [(64, 64, 2), (2, 64, 6), (64, 1, 10)]
)
def test_sequences_share_a_grammar_but_not_too_many_nor_for_ever(
    max_copies: int, max_kept: int, num_compiled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def count(grammar: str, vocabulary: Vocabulary) -> LLMatcher:
        compiled.append(grammar)
        return compile_grammar(grammar, vocabulary)

    monkeypatch.setattr(module, "compile_grammar", count)
    monkeypatch.setattr(module, "MAX_COPIES", max_copies)
    monkeypatch.setattr(module, "MAX_KEPT", max_kept)
    sharing = Grammars(VOCABULARY, lambda: vocabulary_of("demo"))
    plans = [setup(i, (DIGITS, SCHEMA)[i % 2]) for i in range(10)]
    sharing.expect(step(list(range(10)), *plans))
    sharing.close()
    assert len(compiled) == num_compiled


def test_a_lexer_that_has_met_too_much_fails_only_its_own_sequences(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Each sequence of a and b leads to states of its own, up to 2^14 of them.
    wide = LLMatcher.grammar_from_regex("[ab]*a[ab]{14}c[ab]*")
    limits = LLParserLimits(max_lexer_states=300, verbose_errors=False)
    monkeypatch.setattr(guide, "grammar_limits", lambda: limits)
    monkeypatch.setattr(module, "MAX_COPIES", 4)
    sharing = Grammars(VOCABULARY, lambda: vocabulary_of("demo"))
    sampler = Sampler(VOCABULARY, CPU, sharing)
    with caplog.at_level(logging.ERROR, "tdpipe"):
        for seed in range(30):
            row = setup(0, wide, temperature=2.0, seed=seed)
            for number in range(60):
                plan = step([0], *(() if number else (row,)))
                picked(sampler, logits_of(number), plan)
    sharing.close()
    assert not caplog.records


def test_without_a_vocabulary_rows_with_a_grammar_stop_and_others_continue(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = Grammars(VOCABULARY, no_vocabulary)
    logits = logits_of(1, 2)
    with caplog.at_level(logging.ERROR, "tdpipe"):
        tokens = picked(Sampler(VOCABULARY, CPU, broken), logits, step([0, -1], setup(0, DIGITS)))
    broken.close()
    assert tokens == [END, int(logits[1].argmax())]
    assert "no tokenizer" in caplog.text


def test_a_grammar_that_takes_too_long_stops_its_row(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    go_on = threading.Event()

    def load() -> Vocabulary:
        go_on.wait()
        return vocabulary_of("demo")

    slow = Grammars(VOCABULARY, load)
    sampler = Sampler(VOCABULARY, CPU, slow)
    with caplog.at_level(logging.ERROR, "tdpipe"):
        first = picked(sampler, logits_of(1), step([0], setup(0, DIGITS)))
    go_on.set()
    monkeypatch.undo()
    second = picked(sampler, logits_of(2), step([0], step_id=2))
    slow.close()
    assert (first, second) == ([END], [END])
    assert "took more than" in caplog.text


@contextmanager
def hanging(monkeypatch: pytest.MonkeyPatch, name: str) -> Iterator[None]:
    """The first call of a function hangs, until the end of the block."""
    function, numbers, go_on = getattr(module, name), itertools.count(), threading.Event()

    def hang_at_first(*arguments: Any) -> Any:
        if next(numbers) == 0:
            go_on.wait()
        return function(*arguments)

    monkeypatch.setattr(module, name, hang_at_first)
    try:
        yield
    finally:
        go_on.set()


def test_a_mask_that_hangs_holds_up_no_other_step(
    monkeypatch: pytest.MonkeyPatch, grammars: Grammars
) -> None:
    sampler = Sampler(VOCABULARY, CPU, grammars)
    with hanging(monkeypatch, "next_masks"):
        picked(sampler, logits_of(0), step([0], setup(0, DIGITS)))
        (output,) = run(sampler, [setup(1, DIGITS)])
    assert re.fullmatch("[0-9]{3,6}", text_of(output))


@pytest.mark.parametrize("name", ["compile_grammar", "next_masks"])
def test_a_thread_that_hangs_is_replaced(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_THREADS", 1)
    grammars = Grammars(VOCABULARY, lambda: vocabulary_of("demo"))
    sampler = Sampler(VOCABULARY, CPU, grammars)
    plans = [step([0], setup(0, DIGITS)), step([0], step_id=2)]
    with hanging(monkeypatch, name), caplog.at_level(logging.ERROR, "tdpipe"):
        if name == "next_masks":
            picked(sampler, logits_of(0), plans.pop(0))
        with monkeypatch.context() as impatient:
            impatient.setattr(module, "PATIENCE_S", 0.0)
            assert picked(sampler, logits_of(1), plans[0]) == [END]
        (output,) = run(sampler, [setup(1, DIGITS)])
    grammars.close()
    assert re.fullmatch("[0-9]{3,6}", text_of(output))
    assert len(caplog.records) == 1


def test_a_complete_sequence_releases_its_grammar(grammars: Grammars) -> None:
    sampler = Sampler(VOCABULARY, CPU, grammars)
    run(sampler, [setup(0, DIGITS)])
    assert picked(sampler, logits_of(1), step([0])) == [END]
    assert grammars._places[0].guide.matcher is None


def test_a_mask_has_a_bit_for_each_token() -> None:
    rng = np.random.default_rng(1)
    masks = rng.integers(0, 2**32, (3, 4), dtype=np.uint32)
    got = unpacked(masks, 100, CPU)
    for row, mask in zip(got.tolist(), masks.tolist(), strict=True):
        assert row == [bool(mask[i // 32] >> (i % 32) & 1) for i in range(100)]
