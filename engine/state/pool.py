"""The pool: all open sequences by state, and the transitions between states with their blocks."""

from engine.state.blocks import BlockLedger
from engine.state.counters import Counters
from engine.state.expectation import Expectation
from engine.state.length_errors import LengthErrors
from engine.state.micro_batch import MicroBatch
from engine.state.milestones import Milestones
from engine.state.prefix_cache import PrefixCache
from engine.state.sampler_slots import SamplerSlots
from engine.state.sequence import Sequence, State
from engine.state.waiting import WaitingQueue


class Pool:
    """Open sequences and the ledger of their blocks.

    Every open sequence is either in `waiting` or in `live`; live sequences without a step in flight
    are also in `ready`, in the order in which they became ready. Every transition updates the
    totals: `live_tokens` counts the planned tokens of live sequences, `waiting_tokens` the tokens
    that waiting sequences still have to feed, and `waiting_output` the output tokens that waiting
    sequences are predicted to generate.

    The pool is kept when the stages are lost: sequences lose their KV, but no sequence is lost.
    """

    def __init__(
        self,
        ledger: BlockLedger,
        waiting: WaitingQueue,
        errors: LengthErrors,
        counters: Counters,
        prefix_cache: PrefixCache | None = None,
    ) -> None:
        self.ledger = ledger
        self.prefix_cache = prefix_cache or PrefixCache(ledger, is_enabled=False)
        self.sampler_slots = SamplerSlots()
        self.milestones = Milestones()
        self.errors = errors
        self.waiting = waiting
        self.counters = counters
        self.live: dict[int, Sequence] = {}
        self.ready: dict[int, Sequence] = {}
        self.live_tokens = 0
        self.waiting_tokens = 0
        self.waiting_output = 0
        self.num_online = 0  # open sequences that are not offline
        self.num_finished = 0  # sequences that held KV when they ended
        self.num_in_flight = 0  # micro-batches in flight
        self._hits: list[tuple[int, int]] = []

    @property
    def num_live(self) -> int:
        """The number of sequences that hold KV."""
        return len(self.live)

    @property
    def has_offline(self) -> bool:
        """Whether any open sequence is offline."""
        return len(self.live) + len(self.waiting) > self.num_online

    def find(self, sequence_id: int) -> Sequence | None:
        """The open sequence with this id, or None."""
        return self.live.get(sequence_id) or self.waiting.find(sequence_id)

    def open_sequences(self) -> list[Sequence]:
        """All sequences that have not ended."""
        return [*self.waiting, *self.live.values()]

    def add(self, sequence: Sequence) -> None:
        """Add a new sequence to the waiting queue."""
        self.prefix_cache.join(sequence)
        self.waiting.add(sequence)
        self.milestones.add(sequence)
        self.num_online += not sequence.submit.offline
        self.errors.expect(sequence.expected)
        self._count_waiting(sequence, 1)

    def expect(self, sequence: Sequence, expected: Expectation) -> None:
        """Replace the expectation of an open sequence; this can move it within the queue."""
        self.errors.expect(sequence.expected, -1)
        self.errors.expect(expected)
        if sequence.state is not State.WAITING:
            sequence.expected = expected
            return
        self._count_waiting(sequence, -1)
        with self.waiting.moving(sequence):
            sequence.expected = expected
        self._count_waiting(sequence, 1)

    def admit(self, sequence: Sequence) -> bool:
        """waiting -> running: allocate blocks for all tokens of the sequence, cached ones first.

        If too few blocks are free, nothing changes and False is returned.
        """
        if self.blocks_to_admit(sequence) > self.ledger.num_free:
            return False
        self.waiting.remove(sequence)
        self._count_waiting(sequence, -1)
        found = self.prefix_cache.find(sequence)
        sequence.num_shared = self.ledger.num_held(found)
        self.ledger.hold(sequence.block_table, found)
        self.ledger.extend(sequence.block_table, len(sequence.token_ids))
        self._count_hit(sequence, len(found))
        self.live[sequence.sequence_id] = sequence
        sequence.state = State.RUNNING
        return True

    def blocks_to_admit(self, sequence: Sequence) -> int:
        """The number of free blocks that a waiting sequence needs for its tokens."""
        shared = self.ledger.num_held(self.prefix_cache.find(sequence))
        return self.ledger.blocks_for(len(sequence.token_ids)) - shared

    def first_waiting(self) -> Sequence | None:
        """The next waiting sequence in order, which expects what is in the cache now, or None."""
        sequence = self.waiting.first()
        if sequence is not None and self.prefix_cache.is_enabled:
            self._count_waiting(sequence, -1)
            found = self.prefix_cache.find(sequence)
            sequence.expected_hit = len(found) * self.ledger.block_size
            self._count_waiting(sequence, 1)
        return sequence

    def feed(self, batch: MicroBatch, sequence: Sequence, limit: int) -> int:
        """Add a row with the next tokens of a prompt, at most `limit`; returns their number."""
        num_tokens = batch.add_prefill(sequence, limit)
        self.prefix_cache.register(sequence, sequence.num_planned + num_tokens)
        return num_tokens

    def grow(self, sequence: Sequence) -> bool:
        """Allocate blocks for all tokens of a ready sequence; False if too few are free."""
        return self.ledger.extend(sequence.block_table, len(sequence.token_ids))

    def take_hits(self) -> list[tuple[int, int]]:
        """The (id, cached tokens) of sequences that were admitted for the first time with some."""
        hits, self._hits = self._hits, []
        return hits

    @property
    def num_inherited(self) -> int:
        """The number of blocks whose first holder has ended, while others share them.

        Every other block in use counts for the live sequence that was the first to hold it:
        `len(block_table) - num_shared` of them for each sequence.
        """
        own = sum([len(s.block_table) - s.num_shared for s in self.live.values()])
        return self.ledger.num_used - own

    def launch(self, sequences: list[Sequence], num_tokens: list[int]) -> None:
        """ready or running -> running, and plan `num_tokens[i]` more tokens of sequence i."""
        # Local names: reading the enumeration for each row would double the cost.
        ready, is_ready, is_running = self.ready, State.READY, State.RUNNING
        for sequence, count in zip(sequences, num_tokens, strict=True):
            if sequence.state is is_ready:
                del ready[sequence.sequence_id]
                sequence.state = is_running
            sequence.num_planned += count
        self.live_tokens += sum(num_tokens)

    def make_ready(self, sequences: list[Sequence]) -> None:
        """running -> ready: the next token of each sequence can be fed."""
        ready, is_ready = self.ready, State.READY
        for sequence in sequences:
            sequence.state = is_ready
            ready[sequence.sequence_id] = sequence

    def preempt(self, sequence: Sequence) -> None:
        """ready -> front of waiting: the blocks are freed, the tokens are kept and fed again."""
        assert sequence.state is State.READY
        assert not sequence.is_pending
        self.counters.preemptions += 1
        self.milestones.lose_kv(sequence, "preempted")
        self._put_back(sequence)

    def lose_stages(self) -> None:
        """live -> front of waiting for all sequences: the KV and the sampler slots are lost."""
        for sequence in self.live.values():
            self._forget_pending(sequence)
        # From now on nothing is found in the cache, nor kept there.
        self.prefix_cache = PrefixCache(self.ledger, is_enabled=False)
        for sequence in list(self.live.values()):
            self.milestones.lose_kv(sequence, "stages_lost")
            self._put_back(sequence)
        for sequence in self.waiting:
            sequence.lose_stages()
        self.sampler_slots = SamplerSlots()
        self.num_in_flight = 0

    def begin(self, ledger: BlockLedger, prefix_cache: PrefixCache) -> None:
        """Use the empty KV cache of new stages; all open sequences are waiting."""
        self.ledger, self.prefix_cache = ledger, prefix_cache
        for sequence in self.waiting:
            self._count_waiting(sequence, -1)
            self.prefix_cache.join(sequence)
            self._count_waiting(sequence, 1)

    def finish(self, sequence: Sequence) -> None:
        """Any state -> finished: the blocks are freed at once, even with a step in flight."""
        self._forget_pending(sequence)
        if sequence.state is State.WAITING:
            self.waiting.remove(sequence)
            self._count_waiting(sequence, -1)
        else:
            self.num_finished += 1
            self._leave_live(sequence)
        self.prefix_cache.leave(sequence)
        self.num_online -= not sequence.submit.offline
        self.sampler_slots.free(sequence)
        self.milestones.end(sequence)
        sequence.state = State.FINISHED

    def _forget_pending(self, sequence: Sequence) -> None:
        """Drop the placeholder of a token that will not come."""
        if sequence.is_pending:
            sequence.token_ids.pop()
            sequence.is_pending = False

    def _put_back(self, sequence: Sequence) -> None:
        self._leave_live(sequence)
        self.prefix_cache.leave(sequence)
        sequence.lose_kv()
        self.prefix_cache.join(sequence)
        self.waiting.put_back(sequence)
        self._count_waiting(sequence, 1)

    def _count_hit(self, sequence: Sequence, num_blocks: int) -> None:
        """The first blocks of an admitted sequence were in the cache."""
        hit, counters = num_blocks * self.ledger.block_size, self.counters
        sequence.expected_hit = 0
        sequence.num_planned, sequence.num_registered = hit, num_blocks
        self.live_tokens += hit
        if not sequence.was_admitted and hit:
            self._hits.append((sequence.sequence_id, min(hit, sequence.num_prompt_tokens)))
        sequence.was_admitted = True
        counters.prefix_queries += len(sequence.token_ids)
        counters.prefix_hits += hit
        counters.recomputed_tokens += max(0, sequence.num_lost - hit)
        sequence.num_lost = 0

    def _count_waiting(self, sequence: Sequence, sign: int) -> None:
        self.waiting_tokens += sign * sequence.num_unplanned
        self.waiting_output += sign * sequence.predicted_remaining

    def _leave_live(self, sequence: Sequence) -> None:
        del self.live[sequence.sequence_id]
        num_known = min(sequence.num_planned, len(sequence.token_ids))
        self.prefix_cache.register(sequence, num_known)
        self.ready.pop(sequence.sequence_id, None)
        self.live_tokens -= sequence.num_planned
        self.ledger.free(sequence.block_table)
