"""Targets: the step size of a refill that meets them, if `ttft_slo` and `tpot_slo` are set.

A step up to the knee makes every token cheaper, but lengthens the turn. With targets, a refill
takes the largest step, up to the knee, with which decoding requests get their tokens within the
TPOT target. Only if the oldest waiting prompt would then miss the TTFT target, the step is as large
as it must be to feed what waits in time.
"""

from dataclasses import dataclass

from configs.scheduler import SchedulerConfig
from engine.costs.cost_model import CostModel, StepSize
from engine.policies.temporal.topup import paced
from engine.state.pool import Pool

RESERVE = 0.3
"""Part of the TTFT target that is kept for what arrives later, and for the way to the client."""


@dataclass(frozen=True, slots=True)
class Targets:
    """The targets in seconds, and the number of stages that a turn passes."""

    ttft_s: float
    tpot_s: float
    num_stages: int

    def step_size(
        self, cost: CostModel, pool: Pool, num_rows: int, kv_tokens: int, knee: int, now: float
    ) -> int:
        """The tokens of a step with `num_rows` decode rows that read `kv_tokens` tokens of KV."""
        size = self._largest_within(cost, num_rows, kv_tokens, knee)
        first = pool.waiting.first()
        if first is None:
            return size
        left_s = first.arrived_at + (1 - RESERVE) * self.ttft_s - now
        step_s = cost.step_s(StepSize(max(1, size), num_rows, kv_tokens))
        num_steps = max(1, int(left_s / step_s))
        return max(size, paced(cost, num_rows, pool.waiting_tokens, num_steps))

    def _largest_within(self, cost: CostModel, num_rows: int, kv_tokens: int, knee: int) -> int:
        """The end of the largest stair, up to the knee, whose turn is within the TPOT target."""
        sizes = [edge for edge in cost.edges if num_rows < edge < knee] + [max(knee, num_rows)]
        within = [size for size in sizes if self._turn_s(cost, size, num_rows, kv_tokens)]
        return within[-1] if within else sizes[0]

    def _turn_s(self, cost: CostModel, size: int, num_rows: int, kv_tokens: int) -> bool:
        return self.num_stages * cost.step_s(StepSize(size, num_rows, kv_tokens)) <= self.tpot_s


def targets_of(config: SchedulerConfig, num_stages: int) -> Targets | None:
    """The targets, if both are set."""
    if config.ttft_slo is None or config.tpot_slo is None:
        return None
    return Targets(config.ttft_slo, config.tpot_slo, num_stages)
