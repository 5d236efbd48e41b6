"""Pools without a scheduler, with sequences in any state and learnt length errors."""

from msgspec.structs import replace

from engine.state.blocks import BlockLedger
from engine.state.counters import Counters
from engine.state.expectation import Expectation, expectation_of
from engine.state.length_errors import LengthErrors
from engine.state.pool import Pool
from engine.state.sequence import Sequence
from engine.state.waiting import WaitingQueue
from tests.engine.world import make_submit

BLOCK_SIZE = 4


def point(predicted_len: int, max_tokens: int = 1 << 20) -> Expectation:
    """A prediction without a spread."""
    return expectation_of(predicted_len, 0.0, max_tokens, guess=128, point_spread=0.5)


def distribution(predicted_len: int, spread: float) -> Expectation:
    """A prediction with a spread."""
    return expectation_of(predicted_len, spread, 1 << 20, guess=128, point_spread=0.5)


def guess(predicted_len: int) -> Expectation:
    """No prediction."""
    return expectation_of(0, 0.0, 1 << 20, guess=predicted_len, point_spread=0.5)


def make_sequence(
    sequence_id: int,
    num_prompt_tokens: int = 1,
    *,
    arrived_at: float | None = None,
    predicted_len: int = 10,
    max_tokens: int = 1 << 20,
    offline: bool = False,
) -> Sequence:
    """A new sequence; by default, sequences arrive in the order of their ids."""
    submit = make_submit(sequence_id, [1] * num_prompt_tokens, max_tokens)
    arrived_at = float(sequence_id) if arrived_at is None else arrived_at
    submit = replace(submit, predicted_len=predicted_len, offline=offline)
    return Sequence(submit, arrived_at, point(predicted_len, max_tokens))


def make_pool(num_blocks: int, errors: LengthErrors | None = None) -> Pool:
    """An empty pool."""
    ledger = BlockLedger(num_blocks, BLOCK_SIZE)
    return Pool(ledger, WaitingQueue(), errors or LengthErrors(20.0), Counters())


def learnt(ended: list[tuple[int, int]], prior_weight: float = 0.0) -> LengthErrors:
    """Length errors from (output, predicted) tokens; by default without a prior."""
    errors = LengthErrors(prior_weight)
    for output_len, predicted_len in ended:
        errors.observe(output_len, point(predicted_len))
    return errors


def make_ready(pool: Pool, sequence: Sequence, num_generated: int = 1) -> Sequence:
    """Feed a new sequence and append generated tokens; the newest is still to be fed."""
    pool.add(sequence)
    assert pool.admit(sequence)
    for _ in range(num_generated):
        assert pool.ledger.extend(sequence.block_table, len(sequence.token_ids))
        pool.launch([sequence], [sequence.num_unplanned])
        sequence.token_ids.append(1)
        pool.make_ready([sequence])
    return sequence


def make_sequences(
    rows: list[tuple[Sequence, int]], spare_blocks: int = 0, errors: LengthErrors | None = None
) -> Pool:
    """A pool where each sequence is ready, and `spare_blocks` blocks are free."""
    held = [-(-(s.num_prompt_tokens + generated - 1) // BLOCK_SIZE) for s, generated in rows]
    pool = make_pool(sum(held) + spare_blocks, errors)
    for sequence, num_generated in rows:
        make_ready(pool, sequence, num_generated)
    assert pool.ledger.num_free == spare_blocks
    return pool


def ids(sequences: list[Sequence]) -> list[int]:
    """The ids of the sequences."""
    return [sequence.sequence_id for sequence in sequences]
