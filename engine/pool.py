"""The pool: every open sequence by its state, and the moves between states with their blocks."""

from collections import OrderedDict
from collections.abc import Iterable

from engine.blocks import BlockLedger
from engine.counters import Counters
from engine.sequence import Sequence, State


class Pool:
    """Open sequences and the ledger they draw blocks from.

    `waiting` is in order of admission (a pre-empted sequence stands in front), `ready` in the order
    in which the sequences became ready. Every open sequence is in exactly one of `waiting`, `ready`
    and `running`.
    """

    def __init__(self, ledger: BlockLedger, counters: Counters) -> None:
        self.ledger = ledger
        self.counters = counters
        self.waiting: OrderedDict[int, Sequence] = OrderedDict()
        self.ready: dict[int, Sequence] = {}
        self.running: dict[int, Sequence] = {}
        self.num_finished = 0  # of those that held KV
        self.last_returned_step = -1

    @property
    def num_live(self) -> int:
        """Sequences that hold KV."""
        return len(self.ready) + len(self.running)

    def live(self) -> Iterable[Sequence]:
        """The sequences that hold KV."""
        yield from self.ready.values()
        yield from self.running.values()

    def find(self, sequence_id: int) -> Sequence | None:
        """The open sequence with this id."""
        for group in (self.ready, self.running, self.waiting):
            if sequence_id in group:
                return group[sequence_id]
        return None

    def open_sequences(self) -> list[Sequence]:
        """All that have not ended."""
        return [*self.waiting.values(), *self.live()]

    def add(self, sequence: Sequence) -> None:
        """A new sequence joins the end of the queue."""
        self.waiting[sequence.sequence_id] = sequence

    def admit(self, sequence: Sequence) -> bool:
        """waiting -> running with blocks for all its tokens; False, and no change, without them."""
        if not self.ledger.extend(sequence.block_table, len(sequence.token_ids)):
            return False
        del self.waiting[sequence.sequence_id]
        sequence.state = State.RUNNING
        self.running[sequence.sequence_id] = sequence
        return True

    def launch(self, sequence: Sequence, num_tokens: int) -> None:
        """ready or running -> running, with `num_tokens` more on their way to the cache."""
        self.ready.pop(sequence.sequence_id, None)
        self.running[sequence.sequence_id] = sequence
        sequence.state = State.RUNNING
        sequence.num_planned += num_tokens

    def make_ready(self, sequence: Sequence) -> None:
        """running -> ready: the next token can be fed."""
        del self.running[sequence.sequence_id]
        sequence.state = State.READY
        self.ready[sequence.sequence_id] = sequence

    def preempt(self, sequence: Sequence) -> None:
        """ready -> front of waiting: its blocks go, all its tokens stay and are fed again later."""
        assert sequence.state is State.READY
        del self.ready[sequence.sequence_id]
        self.ledger.free(sequence.block_table)
        self.counters.preemptions += 1
        self.counters.recomputed_tokens += sequence.num_planned
        sequence.num_planned = 0
        sequence.last_decode_step = -1
        sequence.state = State.WAITING
        self.waiting[sequence.sequence_id] = sequence
        self.waiting.move_to_end(sequence.sequence_id, last=False)

    def finish(self, sequence: Sequence) -> None:
        """Any state -> finished: its blocks are free at once, also while a step is in flight."""
        self.num_finished += sequence.state is not State.WAITING
        for group in (self.ready, self.running, self.waiting):
            group.pop(sequence.sequence_id, None)
        self.ledger.free(sequence.block_table)
        sequence.state = State.FINISHED
