"""The packing of a micro-batch, against a reference that writes lists."""

from array import array
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.costs.cost_model import StepSize
from engine.state.micro_batch import MicroBatch, pack
from engine.state.sampler_slots import SamplerSlots
from engine.state.sequence import Sequence
from simulator.pipeline import size_of
from tests.engine.pools import point
from wire.messages import Sampling, ScoredRow, Step, Submit

BLOCK_SIZE = 4


def make_sequence(
    prompt: list[int],
    output: list[int] | None = None,
    *,
    planned: int = 0,
    spare_blocks: int = 0,
    sampling: Sampling = Sampling(temperature=0.0),  # noqa: B008 - frozen
    **submit: Any,
) -> Sequence:
    """A sequence with blocks 100, 101, ..., `spare_blocks` more than its tokens need."""
    packed = array("i", prompt).tobytes()
    sequence = Sequence(Submit(7, packed, 1000, sampling, **submit), 0.0, point(10))
    sequence.token_ids.extend(output or [])
    sequence.num_planned = planned
    num_blocks = -(-len(sequence.token_ids) // BLOCK_SIZE) + spare_blocks
    sequence.block_table.extend(range(100, 100 + num_blocks))
    return sequence


COLUMNS = {
    "sequence_ids": "q",
    "start_positions": "i",
    "num_tokens": "i",
    "samples": "B",
    "token_ids": "i",
    "block_tables": "i",
    "sampler_slots": "i",
}


def unpacked(step: Step) -> dict[str, Any]:
    """The columns of a step as lists."""
    return {name: array(code, getattr(step, name)).tolist() for name, code in COLUMNS.items()}


def packed(batch: MicroBatch) -> Step:
    """The step, with all sampler slots free."""
    return pack(batch, 1, 1, BLOCK_SIZE, SamplerSlots())


@dataclass(frozen=True)
class Row:
    """The share of a sequence in one step."""

    sequence: Sequence
    num_tokens: int

    @property
    def samples(self) -> bool:
        return self.sequence.num_planned + self.num_tokens == len(self.sequence.token_ids)


def is_decode(row: Row) -> bool:
    """Whether a policy would add the row as a decode: one token to feed, with a block for it."""
    fits = len(row.sequence.block_table) == -(-len(row.sequence.token_ids) // BLOCK_SIZE)
    return bool(row.sequence.num_generated) and row.sequence.num_unplanned == 1 and fits


def batch_of(rows: list[Row]) -> MicroBatch:
    """The rows in the order of a policy, decodes first."""
    batch = MicroBatch()
    for row in sorted(rows, key=is_decode, reverse=True):
        if is_decode(row):
            batch.add_decodes([row.sequence])
        else:
            assert batch.add_prefill(row.sequence, row.num_tokens) == row.num_tokens
    return batch


def reference(rows: list[Row]) -> dict[str, Any]:
    """The same as the fields of `Step`, one column after the other."""
    rows = sorted(rows, key=is_decode, reverse=True)
    ends = [row.sequence.num_planned + row.num_tokens for row in rows]
    sampling = [row.sequence for row in rows if row.samples]
    is_special = [s.submit.sampling.temperature > 0 or s.submit.min_tokens > 0 for s in sampling]
    sampler_slots = iter(range(len(sampling)))
    return {
        "sequence_ids": [row.sequence.sequence_id for row in rows],
        "start_positions": [row.sequence.num_planned for row in rows],
        "num_tokens": [row.num_tokens for row in rows],
        "samples": [int(row.samples) for row in rows],
        "token_ids": [
            row.sequence.token_ids[position]
            for row, end in zip(rows, ends, strict=True)
            for position in range(row.sequence.num_planned, end)
        ],
        "block_tables": [
            row.sequence.block_table[position // BLOCK_SIZE]
            for row, end in zip(rows, ends, strict=True)
            for position in range(0, end, BLOCK_SIZE)
        ],
        "sampler_slots": [next(sampler_slots) if special else -1 for special in is_special]
        if any(is_special)
        else [],
    }


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A row of any kind: a whole prompt, a chunk of one, a decode, a recomputation."""
    prompt = draw(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=12))
    output = draw(st.lists(st.integers(0, 2**31 - 1), max_size=6))
    sequence = make_sequence(
        prompt,
        output,
        planned=draw(st.integers(0, len(prompt) + len(output) - 1)),
        spare_blocks=draw(st.integers(0, 3)),
        sampling=Sampling(
            draw(st.sampled_from([0.0, 0.1, 0.7, 2.0])),
            draw(st.sampled_from([0.0, 0.3, 1.0])),
            draw(st.integers(0, 2**31 - 1)),
            draw(st.integers(0, 2**64 - 1)),
        ),
        min_tokens=draw(st.integers(0, 6)),
        stop_token_ids=draw(st.sampled_from([(), (0,), (3, 9)])),
    )
    return Row(sequence, min(sequence.num_unplanned, draw(st.integers(1, 20))))


@given(rows=st.lists(rows(), min_size=1, max_size=8))
def test_a_packed_batch_contains_exactly_its_rows(rows: list[Row]) -> None:
    step = pack(batch_of(rows), 3, 14, BLOCK_SIZE, SamplerSlots())
    assert (step.epoch, step.step_id) == (3, 14)
    assert unpacked(step) == reference(rows)


@given(rows=st.lists(rows(), max_size=8))
def test_a_batch_counts_the_totals_for_the_cost_model(rows: list[Row]) -> None:
    batch = batch_of(rows)
    assert batch.total_tokens == sum(row.num_tokens for row in rows)
    assert batch.kv_tokens == sum(row.sequence.num_planned for row in rows)
    assert batch.size == size_of(packed(batch))


def test_tokens_of_a_prompt_are_paired_with_earlier_ones_and_themselves() -> None:
    # The third of seven and the four after it: 3 + 4 + 5 + 6 + 7 pairs.
    sequence = make_sequence([1] * 7, planned=2)
    assert batch_of([Row(sequence, 5)]).size == StepSize(5, 1, 2, 25.0)


def test_a_batch_of_both_kinds_is_mixed() -> None:
    prompt, decode = make_sequence([1, 2]), make_sequence([1, 2], [3], planned=2)
    assert batch_of([Row(prompt, 2)]).phase == "prefill"
    assert batch_of([Row(decode, 1)]).phase == "decode"
    assert batch_of([Row(decode, 1), Row(prompt, 1)]).phase == "mixed"


@given(row=rows(), limit=st.integers(1, 20))
def test_a_row_samples_if_nothing_is_left_to_feed(row: Row, limit: int) -> None:
    left, batch = row.sequence.num_unplanned, MicroBatch()
    assert batch.add_prefill(row.sequence, limit) == min(left, limit)
    assert list(packed(batch).samples) == [limit >= left]


def test_packing_changes_no_sequence() -> None:
    sequence = make_sequence([1, 2, 3], [4], planned=3)
    packed(batch_of([Row(sequence, 1)]))
    assert (sequence.num_planned, sequence.token_ids.tolist()) == (3, [1, 2, 3, 4])
    assert sequence.block_table.tolist() == [100]


def test_a_decode_feeds_the_newest_token_at_its_position() -> None:
    sequence = make_sequence([1, 2, 3, 4], [5], planned=4)
    step = unpacked(packed(batch_of([Row(sequence, 1)])))
    assert (step["start_positions"], step["num_tokens"], step["token_ids"]) == ([4], [1], [5])
    assert (step["samples"], step["block_tables"]) == ([1], [100, 101])


def test_a_chunk_does_not_sample_and_has_only_the_blocks_up_to_its_end() -> None:
    sequence = make_sequence(list(range(10)), planned=3, min_tokens=1, stop_token_ids=(0,))
    step = unpacked(packed(batch_of([Row(sequence, 5)])))
    assert (step["token_ids"], step["block_tables"]) == ([3, 4, 5, 6, 7], [100, 101])
    assert (step["samples"], step["sampler_slots"]) == ([0], [])


def test_rows_that_need_more_than_the_likeliest_token_have_a_sampler_slot() -> None:
    chunk = Row(make_sequence([1] * 8), 4)
    greedy = Row(make_sequence([2]), 1)
    random = Row(make_sequence([3], [4, 5], planned=2, sampling=Sampling(0.5, 0.25, 9, 11)), 1)
    banned = Row(make_sequence([6], min_tokens=1, stop_token_ids=(7, 8)), 1)
    guided = Row(make_sequence([9], sampling=Sampling(0.0, grammar="start: /a/")), 1)
    step = packed(batch_of([random, chunk, greedy, banned, guided]))
    assert unpacked(step)["sampler_slots"] == [0, -1, 1, 2]
    drawn, forbidding, following = step.setups
    assert following.sampling.grammar == "start: /a/"
    assert (drawn.sampler_slot, drawn.sampling) == (0, Sampling(0.5, 0.25, 9, 11))
    assert array("i", drawn.output_token_ids).tolist() == [4, 5]
    assert (forbidding.min_tokens, forbidding.stop_token_ids) == (1, (7, 8))


def test_a_sequence_is_set_up_once_and_its_slot_is_reused() -> None:
    sampler_slots, first, second = (
        SamplerSlots(),
        *(make_sequence([3], [4], planned=1, sampling=Sampling(1.0)) for _ in range(2)),
    )
    assert len(pack(batch_of([Row(first, 1)]), 1, 1, BLOCK_SIZE, sampler_slots).setups) == 1
    again = pack(batch_of([Row(first, 1), Row(second, 1)]), 1, 2, BLOCK_SIZE, sampler_slots)
    assert (unpacked(again)["sampler_slots"], [setup.sampler_slot for setup in again.setups]) == (
        [0, 1],
        [1],
    )
    sampler_slots.free(first)
    sampler_slots.free(first)
    third = make_sequence([3], [4], planned=1, sampling=Sampling(1.0))
    (setup,) = pack(batch_of([Row(third, 1)]), 1, 3, BLOCK_SIZE, sampler_slots).setups
    assert setup.sampler_slot == 0


@pytest.mark.parametrize(
    "sampling", [Sampling(0.0, repetition_penalty=1.1), Sampling(0.0, bad_words=(b"\1\0\0\0",))]
)
def test_the_prompt_is_sent_only_if_the_sampler_reads_it(sampling: Sampling) -> None:
    reading = Row(make_sequence([3, 4], sampling=sampling), 2)
    other = Row(make_sequence([3, 4], sampling=Sampling(1.0)), 2)
    prompts = [setup.prompt_token_ids for setup in packed(batch_of([reading, other])).setups]
    assert [array("i", ids).tolist() for ids in prompts] == [[3, 4], []]


def test_a_prompt_is_scored_chunk_by_chunk_and_once() -> None:
    sequence = make_sequence([5, 6, 7, 8, 9], sampling=Sampling(0.0, num_prompt_logprobs=2))
    first = packed(batch_of([Row(sequence, 3)]))
    sequence.num_planned = 3
    last = packed(batch_of([Row(sequence, 2)]))
    assert first.scored == (ScoredRow(0, 2, 8),)
    assert last.scored == (ScoredRow(0, 2, -1),)
    sequence.num_planned = 0  # preempted
    assert packed(batch_of([Row(sequence, 5)])).scored == ()


def test_a_prompt_without_prompt_logprobs_is_not_scored() -> None:
    assert packed(batch_of([Row(make_sequence([5, 6, 7]), 3)])).scored == ()
