"""A micro-batch: the rows of one step, packed into the plan that every stage gets."""

from array import array
from itertools import chain, compress

from engine.messages import Phase, Step
from engine.sequence import Sequence


class MicroBatch:
    """The rows of one step, side by side: `sequences[i]` feeds its next `num_tokens[i]` tokens.

    A row whose tokens are all that its sequence has left to feed samples the next one. The totals
    that the cost model asks for grow with the rows: tokens fed and resident KV tokens read.
    """

    __slots__ = ("kv_tokens", "num_decodes", "num_tokens", "sequences", "total_tokens")

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.num_tokens: list[int] = []
        self.total_tokens = 0
        self.kv_tokens = 0
        self.num_decodes = 0

    @property
    def phase(self) -> Phase:
        """What its rows do."""
        if not self.num_decodes:
            return "prefill"
        return "decode" if self.num_decodes == len(self.sequences) else "mixed"

    def add_decode(self, sequence: Sequence) -> None:
        """A row that feeds the newest token."""
        self.sequences.append(sequence)
        self.num_tokens.append(1)
        self.total_tokens += 1
        self.kv_tokens += sequence.num_planned
        self.num_decodes += 1

    def add_prefill(self, sequence: Sequence, limit: int) -> int:
        """A row of what the sequence still has to feed, at most `limit` tokens; their number."""
        num_tokens = min(sequence.num_unplanned, limit)
        self.sequences.append(sequence)
        self.num_tokens.append(num_tokens)
        self.total_tokens += num_tokens
        self.kv_tokens += sequence.num_planned
        return num_tokens


def pack(batch: MicroBatch, epoch: int, step_id: int, block_size: int) -> Step:
    """The plan for the stages. Each row's block table must already hold the row's tokens."""
    sequences, num_tokens = batch.sequences, batch.num_tokens
    starts = [sequence.num_planned for sequence in sequences]
    ends = [start + count for start, count in zip(starts, num_tokens, strict=True)]
    samples = bytes(
        [end == len(sequence.token_ids) for sequence, end in zip(sequences, ends, strict=True)]
    )
    spans = zip(sequences, starts, ends, strict=True)
    if batch.num_decodes == len(sequences):
        token_ids = array("i", [sequence.token_ids[-1] for sequence in sequences])
    else:
        token_ids = array(
            "i", chain.from_iterable(s.token_ids[start:end] for s, start, end in spans)
        )
    sampling = list(compress(sequences, samples))
    random = [
        (i, sequence)
        for i, sequence in enumerate(sampling)
        if sequence.submit.sampling.temperature > 0
    ]
    return Step(
        epoch=epoch,
        step_id=step_id,
        phase=batch.phase,
        sequence_ids=array("q", [sequence.sequence_id for sequence in sequences]).tobytes(),
        start_positions=array("i", starts).tobytes(),
        num_tokens=array("i", num_tokens).tobytes(),
        samples=samples,
        token_ids=token_ids.tobytes(),
        block_tables=b"".join(
            [
                sequence.block_table[: -(-end // block_size)].tobytes()
                for sequence, end in zip(sequences, ends, strict=True)
            ]
        ),
        random_rows=array("i", [i for i, _ in random]).tobytes(),
        temperatures=array("f", [s.submit.sampling.temperature for _, s in random]).tobytes(),
        top_ps=array("f", [s.submit.sampling.top_p for _, s in random]).tobytes(),
        top_ks=array("i", [s.submit.sampling.top_k for _, s in random]).tobytes(),
        seeds=array("Q", [s.submit.sampling.seed for _, s in random]).tobytes(),
        output_indices=array("i", [s.num_generated for _, s in random]).tobytes(),
        bans=tuple(
            (i, array("i", sequence.submit.stop_token_ids).tobytes())
            for i, sequence in enumerate(sampling)
            if sequence.bans_stop()
        ),
    )
