"""The batch: every token at its position and slot, against a twin that counts one by one."""

from array import array
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.workers.world import CPU, Ground, History, all_slots, ints
from workers.device.upload import upload_to
from workers.model.batch import build, num_tokens

# (tokens fed before, tokens fed now, tokens left for later)
shares = st.lists(
    st.tuples(st.integers(0, 12), st.integers(1, 12), st.integers(0, 2)), min_size=1, max_size=6
)


def twin(fed: list[tuple[History, int]], block_size: int) -> dict[str, Any]:
    """The same, one token after the other."""
    tokens: list[int] = []
    positions, begins, reads, sample_at = [], [0], [], []
    for sequence, count in fed:
        for position in range(sequence.fed, sequence.fed + count):
            tokens.append(sequence.token_ids[position])
            positions.append(position)
        begins.append(len(tokens))
        reads.append([sequence.slot(p, block_size) for p in range(sequence.fed + count)])
        if sequence.fed + count == len(sequence.token_ids):
            sample_at.append(len(tokens) - 1)
    return {
        "token_ids": tokens,
        "position_ids": positions,
        "begins": begins,
        "reads": reads,
        "output_at": sample_at,
    }


@given(shares=shares, block_size=st.integers(1, 5))
def test_a_built_batch_is_its_twin(shares: list[tuple[int, int, int]], block_size: int) -> None:
    ground = Ground(block_size, num_blocks=200)
    fed = []
    for number, (before, now, later) in enumerate(shares):
        sequence = ground.sequence([100 * number + i for i in range(before + now + later)])
        sequence.fed = before
        fed.append((sequence, now))
    want = twin(fed, block_size)
    step = ground.step(fed)
    batch = build(step, block_size, upload_to(CPU))
    assert batch.num_tokens == num_tokens(step) == len(want["token_ids"])
    assert batch.token_ids.shape == batch.position_ids.shape == (1, batch.num_tokens)
    assert batch.rows.begins.tolist() == want["begins"]
    assert batch.rows.starts.tolist() == [before for before, _, _ in shares]
    assert all_slots(batch.rows) == want["reads"]
    starts = batch.rows.starts.tolist()
    new = [reads[start:] for reads, start in zip(want["reads"], starts, strict=True)]
    assert batch.rows.new_slots().tolist() == [slot for of_row in new for slot in of_row]
    for name in ("token_ids", "position_ids", "output_at"):
        tensor = getattr(batch, name)
        assert tensor.dtype == torch.int64
        assert ints(tensor) == want[name], name


def test_a_chunk_and_a_decode_by_hand() -> None:
    ground = Ground(block_size=4)
    chunk, decode = History([10, 11, 12, 13, 14, 15], [7, 2], fed=2), History([20, 21], [5], fed=1)
    batch = build(ground.step([(chunk, 3), (decode, 1)]), 4, upload_to(CPU))
    assert ints(batch.token_ids) == [12, 13, 14, 21]
    assert ints(batch.position_ids) == [2, 3, 4, 1]
    assert batch.rows.begins.tolist() == [0, 3, 4]
    assert batch.rows.starts.tolist() == [2, 1]
    assert batch.rows.table_begins.tolist() == [0, 2]
    assert batch.rows.blocks.tolist() == [7, 2, 5]
    assert all_slots(batch.rows) == [[28, 29, 30, 31, 8], [20, 21]]
    assert batch.rows.new_slots().tolist() == [30, 31, 8, 21]
    assert ints(batch.output_at) == [3]


def test_the_rope_length_of_a_token_is_that_of_the_prompt_or_of_its_position() -> None:
    ground = Ground(block_size=4)
    chunk, decode = History([10, 11, 12, 13, 14, 15], [7, 2], fed=2), History([20, 21], [5], fed=1)
    step = ground.step([(chunk, 3), (decode, 1)])
    assert ints(build(step, 4, upload_to(CPU)).rope_lens) == [3, 4, 5, 2]
    step = replace(step, rope_lens=array("i", [4, 1]).tobytes())
    batch = build(step, 4, upload_to(CPU))
    assert ints(batch.rope_lens) == [4, 4, 5, 2]
    assert batch.rope_lens.shape == (1, 4)


def test_a_step_without_sampling_rows_has_no_place_to_sample_at() -> None:
    ground = Ground()
    assert ground.batch([(ground.sequence([1, 2, 3]), 2)]).output_at.shape == (0,)
