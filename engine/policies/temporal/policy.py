"""Policy temporal: temporal disaggregation without its bubbles.

Refills and decode phases alternate as in TD-Pipe, but a refill does not stop decoding: its steps
are decode micro-batches topped up with prefill tokens to the knee of the cost model. All steps of a
refill have the same size, and the next phase follows without a pause, so that stages do not wait
for each other within a phase, and only briefly at a switch. Each idea has its own module:
`balance`, `topup`, `forecast`, `horizon`, `refill` and `kv_plan` here, `length_errors` and
`waiting` in `engine.state`.
"""

from collections import deque
from itertools import islice, takewhile
from operator import itemgetter

import numpy as np

from configs.schema.scheduler import SHORTEST_LIMIT, SchedulerConfig
from engine.costs.cost_model import CostModel
from engine.policies.chunked_prefill import PrefillCursor
from engine.policies.decode_rows import add_decodes
from engine.policies.policy import Policy
from engine.policies.td_pipe.greedy_prefill import FutureUse
from engine.policies.temporal.balance import most_rows
from engine.policies.temporal.forecast import Rest, best_size
from engine.policies.temporal.horizon import turns_to_pay
from engine.policies.temporal.kv_plan import KvPlan
from engine.policies.temporal.refill import idle_loss_s, switch_cost_s
from engine.policies.temporal.targets import targets_of
from engine.policies.temporal.topup import knee, paced
from engine.state.length_errors import OUTCOME_WEIGHTS, Floats
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from engine.state.sequence import Sequence, State
from wire.messages import Phase

# Maximum number of candidates in an admission plan, and pipeline turns between two plans.
_MAX_CANDIDATES, _PLAN_TURNS = 64, 4
# Pipeline turns between two forecasts, and number of groups of sequences in a forecast.
_FORECAST_TURNS, _GROUPS = 64, 16
# The forecast may choose steps smaller than the knee whose tokens cost at most this many knee
# tolerances more than the cheapest. Smaller ones make a turn short for the longest answer, but its
# length is known only roughly, and every token pays for it.
_DEAREST = 2
# The forecast is repeated immediately when the waiting work has grown by this factor.
_GROWTH = 1.5
# Weight of the newest step in the moving average of tokens per step.
_MEAN_WEIGHT = 1 / 256


class Temporal(Policy):
    """Decode in balanced micro-batches, topped up with prompts that the KV plan admits."""

    def __init__(self, config: SchedulerConfig, num_stages: int, cost: CostModel) -> None:
        self.phase: Phase = "decode"
        self._config = config
        self._num_stages = num_stages
        self._cost = cost
        self._max_live = config.max_live(num_stages)
        self._knee = self._find_knee()
        self._cursor = PrefillCursor()
        self._admitted: deque[Sequence] = deque()
        self._refill_size = 0
        self._idle_loss_s = 0.0
        self._target_size = 0
        self._launches = 0
        self._mean_tokens = float(self._knee)
        self._max_size = self._knee
        self._pauses = False
        self._next_forecast = 0
        self._forecast_work = 0
        self._next_plan = 0
        self._all_fitted = True
        self._first_seen: Sequence | None = None
        self._now = 0.0
        self._targets = targets_of(config, num_stages)
        self._max_wait_s = config.max_prefill_wait
        if self._targets is not None:
            self._max_wait_s = min(self._max_wait_s, self._targets.max_wait_s)

    @property
    def max_in_flight(self) -> int:
        """See `Policy.max_in_flight`."""
        return self._num_stages

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:
        """See `Policy.next_micro_batch`."""
        self._now = now
        if self._is_plan_due(pool):
            self._plan_admission(pool)
        if self.phase == "decode" and self._is_refill_due(pool, now):
            self._switch(pool, "prefill")
        batch = MicroBatch()
        if self.phase == "decode" or self._decodes_in_refills(pool):
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
        self._mean_tokens += (batch.total_tokens - self._mean_tokens) * _MEAN_WEIGHT
        return batch

    def _decodes_in_refills(self, pool: Pool) -> bool:
        """Whether to decode during a refill. It pauses only if all open sequences are offline."""
        return self._config.temporal.topup and (not self._pauses or pool.num_online > 0)

    def _switch(self, pool: Pool, phase: Phase) -> None:
        self.phase = phase
        self._idle_loss_s = 0.0
        self._refill_size = self._target_size if phase == "prefill" else 0
        pool.counters.switches += 1

    def _decode(self, pool: Pool, batch: MicroBatch) -> None:
        """Add decode rows: an equal share of the live sequences."""
        num_rows, kv_tokens = -(-pool.num_live // self._num_stages), float("inf")
        if self._config.temporal.balance_time:
            num_rows = most_rows(self._cost, pool.num_live, self._num_stages)
            kv_tokens = pool.live_tokens / self._num_stages
        if self.phase == "prefill":  # a prompt can be fed as well
            num_rows = min(num_rows, max(1, self._config.max_num_batched_tokens - SHORTEST_LIMIT))
        add_decodes(pool, batch, list(pool.ready.values()), num_rows, kv_tokens)

    def _refill(self, pool: Pool, batch: MicroBatch) -> int:
        """Add prefill tokens, and return how many were added.

        A decode phase fills the step to the end of its stair, a refill to the refill size, and at
        least so far that a prompt can be fed: otherwise prompts would wait for the decodes to end.
        """
        size = self._cost.edge(batch.num_decodes) if batch.num_decodes else 0
        if self.phase == "prefill":
            size = max(size, self._refill_size, batch.num_decodes + SHORTEST_LIMIT)
        size = min(size, self._config.max_num_batched_tokens)
        num_tokens = size - batch.num_decodes
        return self._cursor.fill(pool, batch, num_tokens, lambda: self._next_admitted(pool))

    def _next_admitted(self, pool: Pool) -> Sequence | None:
        if not self._admitted and self._all_fitted and pool.waiting and self.phase == "prefill":
            self._plan_admission(pool)
        while self._admitted:
            sequence = self._admitted.popleft()
            if sequence.state is State.WAITING:
                return sequence
        return None

    def _is_refill_due(self, pool: Pool, now: float) -> bool:
        """Whether to begin a refill: yes once idle blocks have cost as much time as a switch.

        A refill begins earlier if all waiting sequences are admitted, if nothing else can run, or
        if an online request has waited for `max_prefill_wait`.
        """
        if not self._admitted and not self._cursor.half_fed:
            return False
        if (
            not self._config.temporal.lazy_refill
            or not pool.ready  # nothing else can run
            or len(self._admitted) >= len(pool.waiting)
            or pool.waiting.online_wait_s(now) >= self._max_wait_s
        ):
            return True
        rows = -(-pool.num_live // self._num_stages)
        return self._idle_loss_s >= switch_cost_s(self._cost, rows, max(rows, self._target_size))

    def _is_plan_due(self, pool: Pool) -> bool:
        """Whether to plan admission again: every few turns, or after all planned prompts are fed.

        It is also due if the first online request in the queue is not part of the plan.
        """
        if self._launches >= self._next_plan or not pool.num_in_flight:
            return True
        first = pool.waiting.first()
        if first is None:
            return False
        expected = self._admitted[0] if self._admitted else self._first_seen
        if not first.submit.offline and first is not expected:
            return True
        if self._admitted:
            return False
        is_idle = not pool.ready and self._all_fitted
        return is_idle or (self.phase == "prefill" and self._cursor.half_fed is None)

    def _plan_admission(self, pool: Pool) -> None:
        """Choose the sequences to admit next, and the step size to feed them in time."""
        config, num_stages = self._config.temporal, self._num_stages
        self._next_plan = self._launches + _PLAN_TURNS * num_stages
        self._first_seen = pool.waiting.first()
        work = pool.waiting_tokens + pool.waiting_output
        if self._launches >= self._next_forecast or work > _GROWTH * self._forecast_work:
            self._next_forecast = self._launches + _FORECAST_TURNS * num_stages
            self._forecast_work = work
            self._knee = self._find_knee()  # the cost model may have been corrected
            self._max_size, self._pauses = self._forecast(pool)
            self._refill_size = min(self._refill_size, self._max_size)
        num_places = min(_MAX_CANDIDATES, self._max_live - pool.num_live)
        candidates: list[Sequence] = []
        admitted: list[Sequence] = []
        if num_places > 0 and pool.waiting:
            plan = KvPlan(pool, pool.errors)
            critical = self._critical_len(pool, work, plan.survival)
            candidates = list(islice(pool.waiting.with_critical_first(critical), num_places))
            admitted = self._admissible(pool, plan, candidates)
        self._admitted = deque(admitted)
        self._all_fitted = num_places > 0 and len(admitted) == len(candidates)
        rows = -(-pool.num_live // num_stages)
        if not self._all_fitted:
            supply = sum(sequence.num_unplanned for sequence in admitted)
            size = paced(self._cost, rows, supply, num_stages * config.refill_rounds)
        elif pool.has_offline:
            size = self._max_size
        elif self._targets is not None:
            kv_tokens = pool.live_tokens // num_stages
            size = self._targets.step_size(self._cost, pool, rows, kv_tokens, self._knee, self._now)
            size = min(size, self._config.max_num_batched_tokens)
        else:
            size = paced(self._cost, rows, pool.waiting_tokens, config.online_steps)
        is_online = self._all_fitted and not pool.has_offline
        self._target_size = size if self._targets and is_online else min(self._max_size, size)
        if self.phase == "prefill":
            self._refill_size = max(self._refill_size, self._target_size)

    def _find_knee(self, tolerances: int = 1) -> int:
        config = self._config
        tolerance = tolerances * config.temporal.knee_tolerance
        return knee(self._cost, config.max_num_batched_tokens, tolerance)

    def _critical_len(self, pool: Pool, work: int, survival: Floats) -> float:
        """The predicted length in tokens at and above which an answer is critical.

        A critical answer may need a large part of the remaining pipeline turns.
        """
        if not self._config.temporal.longest_first:
            return float("inf")
        turns = work / (self._num_stages * self._mean_tokens)
        config = self._config.temporal
        return pool.errors.prediction_of(
            turns / config.critical_slack, survival, config.critical_sigmas
        )

    def _forecast(self, pool: Pool) -> tuple[int, bool]:
        """The step size of a refill (the knee, or another edge), and whether decoding pauses."""
        sample = pool.waiting.by_length(_GROUPS)
        if not self._config.temporal.forecast or not sample:
            return self._knee, False
        stride = max(1, pool.num_live // _GROUPS)
        live = list(islice(pool.live.values(), 0, None, stride))
        chosen = live + [sequence for sequence, _ in sample]
        counts = np.array([stride] * len(live) + [count for _, count in sample], dtype=float)
        errors = pool.errors
        lens = errors.real_lens(
            np.array([s.expected.median for s in chosen]),
            np.array([s.expected.spread for s in chosen]),
            errors.survival_beside(pool.live.values()),
        )
        rest = Rest(
            np.outer(counts, OUTCOME_WEIGHTS).ravel(),
            np.repeat([float(len(s.token_ids)) for s in chosen], len(OUTCOME_WEIGHTS)),
            np.repeat([float(s.num_unplanned) for s in chosen], len(OUTCOME_WEIGHTS)),
            np.maximum(1.0, lens.T - np.array([[s.num_generated] for s in chosen])).ravel(),
        )
        longest = self._config.max_num_batched_tokens
        smallest = self._find_knee(_DEAREST)
        edges = (size for size in self._cost.edges if smallest <= size < longest)
        sizes = [self._knee, *(size for size in edges if size != self._knee)]
        kv_tokens = pool.ledger.num_blocks * pool.ledger.block_size
        return best_size(self._cost, sizes, rest, self._num_stages, kv_tokens)

    def _horizons(self, pool: Pool, candidates: list[Sequence]) -> list[float]:
        """For how many pipeline turns each candidate must fit, if all before it are admitted."""
        if not self._config.temporal.horizon:
            return [float("inf")] * len(candidates)
        prefill_s = self._cost.linear_s(self._knee) / self._knee
        return [
            self._config.temporal.horizon
            * turns_to_pay(
                self._cost, -(-(pool.num_live + i) // self._num_stages), len(s.token_ids), prefill_s
            )
            for i, s in enumerate(candidates, start=1)
        ]

    def _admissible(self, pool: Pool, plan: KvPlan, candidates: list[Sequence]) -> list[Sequence]:
        """The candidates that fit now and with their output, up to the first that does not fit."""
        if self._config.temporal.survival:
            admitted = plan.admit(candidates, self._horizons(pool, candidates))
        else:
            use = FutureUse.of_live(pool, self._config.td_pipe.kv_occupancy)
            shared = pool.prefix_cache.shares(candidates)
            fits = map(use.take, candidates, shared)
            admitted = [s for s, _ in takewhile(itemgetter(1), zip(candidates, fits, strict=True))]
        # Without live sequences the first is always admitted: `Submit` checked that it fits.
        return admitted if admitted or pool.num_live else candidates[:1]
