"""A micro-batch: the rows of one step, packed into the `Step` for every stage."""

from array import array
from itertools import compress

from engine.costs.cost_model import StepSize
from engine.state.rope_lengths import rope_lens
from engine.state.sampler_slots import SamplerSlots
from engine.state.sequence import Sequence
from wire.messages import Phase, RopeRule, ScoredRow, Step


class MicroBatch:
    """The rows of one step, as columns: `sequences[i]` feeds its next `num_tokens[i]` tokens.

    Decode rows come before prefill rows. A row that feeds all remaining tokens of its sequence
    samples the next token. Each added row updates the totals for the cost model: tokens
    fed, resident KV tokens read, and pairs of tokens within prompts.
    """

    __slots__ = (
        "kv_tokens",
        "num_decodes",
        "num_pairs",
        "num_tokens",
        "sequences",
        "total_tokens",
    )

    def __init__(self) -> None:
        self.sequences: list[Sequence] = []
        self.num_tokens: list[int] = []
        self.total_tokens = 0
        self.kv_tokens = 0
        self.num_pairs = 0.0
        self.num_decodes = 0

    @property
    def size(self) -> StepSize:
        """The totals that determine the seconds of the step."""
        return StepSize(self.total_tokens, len(self.sequences), self.kv_tokens, self.num_pairs)

    @property
    def phase(self) -> Phase:
        """Whether the rows are prefills, decodes, or both."""
        if not self.num_decodes:
            return "prefill"
        return "decode" if self.num_decodes == len(self.sequences) else "mixed"

    def add_decodes(self, sequences: list[Sequence]) -> None:
        """Add rows that feed the newest token of each sequence; call this before `add_prefill`."""
        assert self.num_decodes == len(self.sequences)
        count = len(sequences)
        self.sequences += sequences
        self.num_tokens += [1] * count
        self.total_tokens += count
        self.kv_tokens += sum([sequence.num_planned for sequence in sequences])
        self.num_decodes += count

    def add_prefill(self, sequence: Sequence, limit: int) -> int:
        """Add a row with the next tokens of a sequence, at most `limit`; returns their number."""
        num_tokens = min(sequence.num_unplanned, limit)
        self.sequences.append(sequence)
        self.num_tokens.append(num_tokens)
        self.total_tokens += num_tokens
        self.kv_tokens += sequence.num_planned
        if num_tokens > 1:
            self.num_pairs += num_tokens * (sequence.num_planned + (num_tokens + 1) / 2)
        return num_tokens


def pack(
    batch: MicroBatch,
    epoch: int,
    step_id: int,
    block_size: int,
    sampler_slots: SamplerSlots,
    rope: RopeRule | None = None,
    follows: int = -1,
) -> Step:
    """Build the message for the stages, with RoPE lengths if there is a rule for them.

    Pending tokens are those that the step `follows` samples.

    Each block table must already have blocks for the tokens of its row. Rows that sample for
    the first time get a sampler slot, unless they are plain.
    """
    sequences, decodes = batch.sequences, batch.sequences[: batch.num_decodes]
    starts = [sequence.num_planned for sequence in sequences]
    # A decode row feeds one token and samples; its table ends with the block of that token.
    samples = bytearray(b"\1" * len(decodes))
    token_ids = array("i", [sequence.token_ids[-1] for sequence in decodes])
    tables = [sequence.block_table for sequence in decodes]
    scored: list[ScoredRow] = []
    for i in range(len(decodes), len(sequences)):
        sequence, end = sequences[i], starts[i] + batch.num_tokens[i]
        samples.append(end == len(sequence.token_ids))
        token_ids += sequence.token_ids[starts[i] : end]
        tables.append(sequence.block_table[: -(-end // block_size)])
        num_scored = min(end, sequence.num_prompt_tokens)
        if sequence.num_scored < num_scored:  # tokens that are fed again are not scored again
            sequence.num_scored = num_scored
            if sequence.submit.sampling.num_prompt_logprobs >= 0:
                scored.append(_scored(sequence, i, end))
    special = [sequence for sequence in compress(sequences, samples) if not sequence.is_plain]
    setups = tuple(
        sampler_slots.setup(sequence) for sequence in special if sequence.sampler_slot < 0
    )
    columns = b""
    if special:
        columns = array(
            "i", [sequence.sampler_slot for sequence in compress(sequences, samples)]
        ).tobytes()
    return Step(
        epoch=epoch,
        step_id=step_id,
        phase=batch.phase,
        sequence_ids=array("q", [sequence.sequence_id for sequence in sequences]).tobytes(),
        start_positions=array("i", starts).tobytes(),
        num_tokens=array("i", batch.num_tokens).tobytes(),
        samples=bytes(samples),
        token_ids=token_ids.tobytes(),
        block_tables=b"".join(tables),
        sampler_slots=columns,
        setups=setups,
        scored=tuple(scored),
        rope_lens=rope_lens(sequences, rope) if rope else b"",
        follows=follows if any(sequence.is_pending for sequence in decodes) else -1,
    )


def _scored(sequence: Sequence, row: int, end: int) -> ScoredRow:
    """Describe the row of a prompt that is scored up to position `end`."""
    follower = sequence.token_ids[end] if end < sequence.num_prompt_tokens else -1
    return ScoredRow(row, sequence.submit.sampling.num_prompt_logprobs, follower)
