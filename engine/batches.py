"""A micro-batch: the rows of one step, packed into the plan that every stage gets."""

from array import array
from dataclasses import dataclass

from engine.messages import Phase, Step
from engine.sequence import Sequence


@dataclass(slots=True, frozen=True)
class Row:
    """A sequence's share of one step: its next `num_tokens` unplanned tokens.

    `samples` where they are all it has: a new token follows.
    """

    sequence: Sequence
    num_tokens: int
    samples: bool

    @classmethod
    def feed(cls, sequence: Sequence, limit: int) -> "Row":
        """What the sequence still has to feed, at most `limit` tokens of it."""
        num_tokens = min(sequence.num_unplanned, limit)
        return cls(sequence, num_tokens, samples=num_tokens == sequence.num_unplanned)


@dataclass(slots=True, frozen=True)
class MicroBatch:
    """The rows of one step."""

    phase: Phase
    rows: list[Row]


def pack(batch: MicroBatch, epoch: int, step_id: int, block_size: int) -> Step:
    """The plan for the stages. Each row's block table must already hold the row's tokens."""
    sequence_ids, seeds = array("q"), array("Q")
    start_positions, num_tokens, token_ids, block_tables = (array("i") for _ in range(4))
    random_rows, top_ks, output_indices = (array("i") for _ in range(3))
    temperatures, top_ps = array("f"), array("f")
    samples = bytearray()
    bans: list[tuple[int, bytes]] = []
    num_sampling = 0
    for row in batch.rows:
        sequence, start = row.sequence, row.sequence.num_planned
        sequence_ids.append(sequence.sequence_id)
        start_positions.append(start)
        num_tokens.append(row.num_tokens)
        end = start + row.num_tokens
        token_ids.extend(sequence.token_ids[start:end])
        block_tables.extend(sequence.block_table[: -(-end // block_size)])
        samples.append(row.samples)
        if not row.samples:
            continue
        sampling = sequence.submit.sampling
        if sampling.temperature > 0:
            random_rows.append(num_sampling)
            temperatures.append(sampling.temperature)
            top_ps.append(sampling.top_p)
            top_ks.append(sampling.top_k)
            seeds.append(sampling.seed)
            output_indices.append(sequence.num_generated)
        if sequence.bans_stop():
            bans.append((num_sampling, array("i", sequence.submit.stop_token_ids).tobytes()))
        num_sampling += 1
    return Step(
        epoch=epoch,
        step_id=step_id,
        phase=batch.phase,
        sequence_ids=sequence_ids.tobytes(),
        start_positions=start_positions.tobytes(),
        num_tokens=num_tokens.tobytes(),
        samples=bytes(samples),
        token_ids=token_ids.tobytes(),
        block_tables=block_tables.tobytes(),
        random_rows=random_rows.tobytes(),
        temperatures=temperatures.tobytes(),
        top_ps=top_ps.tobytes(),
        top_ks=top_ks.tobytes(),
        seeds=seeds.tobytes(),
        output_indices=output_indices.tobytes(),
        bans=tuple(bans),
    )
