"""Targets: the step size of a refill that meets them, if `ttft_slo` and `tpot_slo` are set.

A step up to the knee makes every token cheaper, but lengthens the turn. With targets, a refill
feeds as much of what waits as leaves the turn within 0.9 of the TPOT target, up to the knee, or a
quarter more than the decode rows where these are beyond the knee: to feed more at once would only
make the rows more, and every turn longer. If the oldest waiting prompt would then miss the TTFT
target, the turn may take longer, but the step has still no more tokens than that.
"""

from bisect import bisect_right
from dataclasses import dataclass

from configs.schema.scheduler import SchedulerConfig
from engine.costs.cost_model import CostModel, StepSize
from engine.policies.temporal.topup import paced
from engine.state.pool import Pool

RESERVE = 0.3
"""Part of the TTFT target that is kept for what arrives later, and for the way to the client."""

TPOT_SHARE = 0.9
"""Part of the TPOT target that a turn with prompts may take."""
BESIDE_ROWS = 0.25
"""Prompt tokens for each decode row, where the rows alone are a step beyond the knee."""
MAX_WAIT = 0.1
"""Part of the TTFT target that a prompt waits for the end of a decode phase at most."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets in seconds, and the number of stages that a turn passes."""

    ttft_s: float
    tpot_s: float
    num_stages: int

    @property
    def max_wait_s(self) -> float:
        """Seconds that a prompt waits for a refill at most."""
        return MAX_WAIT * self.ttft_s

    def step_size(
        self, cost: CostModel, pool: Pool, num_rows: int, kv_tokens: int, knee: int, now: float
    ) -> int:
        """The tokens of a step with `num_rows` decode rows that read `kv_tokens` tokens of KV."""
        longest = max(knee, int((1 + BESIDE_ROWS) * num_rows))
        within = self._largest_within(cost, num_rows, kv_tokens, longest)
        size = min(within, cost.edge(num_rows + pool.waiting_tokens))
        first = pool.waiting.first()
        if first is None:
            return size
        left_s = first.arrived_at + (1 - RESERVE) * self.ttft_s - now
        step_s = cost.step_s(StepSize(max(1, size), num_rows, kv_tokens))
        num_steps = max(1, int(left_s / step_s))
        return max(size, min(longest, paced(cost, num_rows, pool.waiting_tokens, num_steps)))

    def _largest_within(self, cost: CostModel, num_rows: int, kv_tokens: int, longest: int) -> int:
        """The end of the largest stair whose turn is within the TPOT target; the rows, if none."""
        limit_s = TPOT_SHARE * self.tpot_s / self.num_stages
        sizes = [size for size in cost.edges if num_rows < size < longest] + [longest]
        number = bisect_right(
            sizes, limit_s, key=lambda size: cost.step_s(StepSize(size, num_rows, kv_tokens))
        )
        return sizes[number - 1] if number else num_rows


def targets_of(config: SchedulerConfig, num_stages: int) -> Targets | None:
    """The targets, if both are set."""
    if config.ttft_slo is None or config.tpot_slo is None:
        return None
    return Targets(config.ttft_slo, config.tpot_slo, num_stages)
