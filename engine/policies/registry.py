"""The policies by name."""

from typing import get_args

from configs.schema.scheduler import SchedulerConfig
from engine.costs.cost_model import CostModel
from engine.policies.hybrid import Hybrid
from engine.policies.policy import Policy
from engine.policies.separate import Separate
from engine.policies.td_pipe.policy import TdPipe
from engine.policies.temporal.policy import Temporal

POLICIES = get_args(SchedulerConfig.model_fields["policy"].annotation)
"""The names of the policies, as in `--policy`."""


def make_policy(config: SchedulerConfig, num_stages: int, cost: CostModel) -> Policy:
    """Create the configured policy for one incarnation of the pipeline.

    `cost` is updated in service (`engine.costs.correction`).
    """
    match config.policy:
        case "td-pipe":
            return TdPipe(config, num_stages, cost)
        case "temporal":
            return Temporal(config, num_stages, cost)
        case "separate":
            return Separate(config, num_stages)
        case "hybrid":
            return Hybrid(config, num_stages)
