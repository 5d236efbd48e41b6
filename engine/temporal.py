"""Policy temporal: temporal disaggregation without its bubbles.

Refills and decode phases alternate as in TD-Pipe, but a refill does not stop decoding: its steps
are decode micro-batches topped up with prefill tokens to the knee of the cost model. All steps of a
refill are of one size and the next phase follows them at once, so no stage waits for another within
a phase and hardly at a switch. Each idea has a file of its own: `balance`, `topup`, `refill`,
`kv_plan`, `lengths`, `waiting`.
"""

from collections import deque
from itertools import islice, takewhile
from math import ceil

from configs.schema import TemporalConfig
from engine.balance import most_rows
from engine.batches import MicroBatch
from engine.cost_model import CostModel
from engine.decoding import add_decodes
from engine.greedy_prefill import FutureUse
from engine.kv_plan import KvPlan
from engine.messages import Phase
from engine.policy import Policy
from engine.pool import Pool
from engine.prefilling import PrefillLane
from engine.refill import idle_loss_s, switch_cost_s
from engine.sequence import Sequence, State
from engine.topup import knee

# Candidates for admission that are looked at in one round.
_LOOK_AHEAD = 64


class Temporal(Policy):
    """Decode in balanced micro-batches, top them up with prompts while the KV plan has room."""

    def __init__(self, config: TemporalConfig, num_stages: int, cost: CostModel) -> None:
        self.phase: Phase = "decode"
        self._config = config
        self._num_stages = num_stages
        self._cost = cost
        self._max_live = config.max_live(num_stages)
        self._knee = knee(cost, config.max_num_batched_tokens, config.knee_tolerance)
        self._lane = PrefillLane()
        self._admitted: deque[Sequence] = deque()
        self._refill_size = 0
        self._idle_loss_s = 0.0
        self._target_size = 0
        self._launches = 0

    @property
    def max_in_flight(self) -> int:
        """See `Policy.max_in_flight`."""
        return self._num_stages

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:
        """See `Policy.next_micro_batch`."""
        if self._launches % self._num_stages == 0 or not pool.num_in_flight:
            self._look(pool)
        if self.phase == "decode" and self._is_refill_due(pool, now):
            self._switch(pool, "prefill")
        batch = MicroBatch()
        if self.phase == "decode" or self._config.topup:
            self._decode(pool, batch)
        if not self._refill(pool, batch) and self.phase == "prefill":
            self._switch(pool, "decode")
            if not batch.sequences:
                self._decode(pool, batch)
        if not batch.sequences:
            return None
        if self.phase == "decode" and batch.num_decodes:
            more = len(self._admitted) / self._num_stages
            self._idle_loss_s += idle_loss_s(self._cost, batch.num_decodes, more)
        self._launches += 1
        return batch

    def _switch(self, pool: Pool, phase: Phase) -> None:
        self.phase = phase
        self._idle_loss_s = 0.0
        self._refill_size = self._target_size if phase == "prefill" else 0
        pool.counters.switches += 1

    def _decode(self, pool: Pool, batch: MicroBatch) -> None:
        """An equal share of the live sequences."""
        num_rows, kv_tokens = -(-pool.num_live // self._num_stages), float("inf")
        if self._config.balance_time:
            num_rows = most_rows(self._cost, pool.num_live, pool.live_tokens, self._num_stages)
            kv_tokens = pool.live_tokens / self._num_stages
        if not pool.waiting:
            num_rows = max(num_rows, self._config.merge_rows)
        add_decodes(pool, batch, list(pool.ready.values()), num_rows, kv_tokens)

    def _refill(self, pool: Pool, batch: MicroBatch) -> int:
        """Top up to the knee, in a decode phase to the end of the stair; the tokens added."""
        size = self._cost.edge(batch.num_decodes) if batch.num_decodes else 0
        if self.phase == "prefill":
            size = max(size, self._refill_size)
        size = min(size, self._config.max_num_batched_tokens)
        return self._lane.fill(pool, batch, size - batch.num_decodes, self._next_admitted)

    def _next_admitted(self) -> Sequence | None:
        while self._admitted:
            sequence = self._admitted.popleft()
            if sequence.state is State.WAITING:
                return sequence
        return None

    def _is_refill_due(self, pool: Pool, now: float) -> bool:
        """With all that waits, or once the idle blocks have cost as much as a switch."""
        if not self._admitted and not self._lane.half_fed:
            return False
        if (
            not self._config.lazy_refill
            or not pool.num_live
            or len(self._admitted) >= len(pool.waiting)
            or pool.waiting.online_wait_s(now) >= self._config.max_prefill_wait
        ):
            return True
        rows = -(-pool.num_live // self._num_stages)
        return self._idle_loss_s >= switch_cost_s(self._cost, rows, max(rows, self._target_size))

    def _look(self, pool: Pool) -> None:
        """Once a round: who is admitted, and how large steps must be to feed them in good time."""
        self._admitted = deque(self._admissible(pool))
        supply = sum(sequence.num_unplanned for sequence in self._admitted)
        if self._lane.half_fed:
            supply += self._lane.half_fed.num_unplanned
        rows = -(-pool.num_live // self._num_stages)
        pace = supply / (self._num_stages * self._config.refill_rounds)
        self._target_size = min(self._knee, self._cost.edge(rows + ceil(pace)))
        if self.phase == "prefill":
            self._refill_size = max(self._refill_size, self._target_size)

    def _admissible(self, pool: Pool) -> list[Sequence]:
        """Waiting sequences that have room now and for good, up to the first that has not."""
        room = min(_LOOK_AHEAD, self._max_live - pool.num_live)
        candidates = list(islice(pool.waiting, max(0, room)))
        if not candidates:
            return []
        if self._config.survival:
            admitted = KvPlan(pool, pool.errors, self._config.kv_margin).admit(candidates)
        else:
            use = FutureUse.of_live(pool, self._config.kv_occupancy)
            admitted = list(takewhile(use.take, candidates))
        # One alone is let in: `Submit` checked that it fits.
        return admitted if admitted or pool.num_live else candidates[:1]
