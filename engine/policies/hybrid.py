"""Policy hybrid: every step mixes decode rows with chunks of prompts (chunked prefill).

`--hybrid vllm`: each micro-batch has all idle decode rows, and prompts fill it up to the token
budget. `--hybrid throttled` (after gLLM's token throttling, docs/papers.md, section 5): decode
rows are spread over S micro-batches, and the prefill tokens of a step depend on the waiting work
and the free KV:

    tokens = min(waiting / iterations, max * (free - reserve) / (1 - reserve)), at least min
"""

from configs.schema.scheduler import SHORTEST_LIMIT, SchedulerConfig
from engine.policies.chunked_prefill import PrefillCursor, first_fitting
from engine.policies.decode_rows import add_decodes
from engine.policies.policy import Policy
from engine.state.micro_batch import MicroBatch
from engine.state.pool import Pool
from wire.messages import Phase


class Hybrid(Policy):
    """Mixes decode rows and prefill chunks in every step."""

    phase: Phase = "mixed"

    def __init__(self, config: SchedulerConfig, num_stages: int) -> None:
        self._config = config
        self._num_stages = num_stages
        self._max_live = config.max_live(num_stages)
        self._cursor = PrefillCursor()

    @property
    def max_in_flight(self) -> int:
        """See `Policy.max_in_flight`."""
        return self._num_stages

    def next_micro_batch(self, pool: Pool, now: float) -> MicroBatch | None:  # noqa: ARG002
        """See `Policy.next_micro_batch`."""
        batch, budget = MicroBatch(), self._config.max_num_batched_tokens
        # However many decodes are ready, prompts that wait get so many tokens that one can be fed.
        has_prompts = self._cursor.half_fed is not None or bool(pool.waiting)
        rows = min(len(pool.ready), max(1, budget - SHORTEST_LIMIT) if has_prompts else budget)
        if self._config.hybrid.hybrid == "throttled":
            rows = min(rows, -(-pool.num_live // self._num_stages))
        add_decodes(pool, batch, list(pool.ready.values()), rows)
        num_tokens = budget - batch.total_tokens
        if self._config.hybrid.hybrid == "throttled":
            num_tokens = min(num_tokens, self._throttled_tokens(pool))
        self._cursor.fill(pool, batch, num_tokens, lambda: first_fitting(pool, self._max_live))
        return batch if batch.sequences else None

    def _throttled_tokens(self, pool: Pool) -> int:
        config, ledger = self._config.hybrid, pool.ledger
        half_fed = self._cursor.half_fed
        waiting = pool.waiting_tokens + (half_fed.num_unplanned if half_fed else 0)
        free = (ledger.num_free / ledger.num_blocks - config.throttle_kv_free) / (
            1 - config.throttle_kv_free
        )
        by_work = waiting / config.throttle_iterations
        by_kv = config.throttle_max_tokens * free
        least = max(config.throttle_min_tokens, SHORTEST_LIMIT)
        return max(least, int(min(by_work, by_kv, config.throttle_max_tokens)))
